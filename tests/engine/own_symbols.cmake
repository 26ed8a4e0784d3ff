# cmake -DNM=nm -DOBJECTS=a.o,b.o -P own_symbols.cmake
#
# A file that is compiled for one instruction set must not define anything that the linker may choose for the whole program,
# such as an inline function of the standard library: on an older processor that would be an illegal instruction.
string(REPLACE "," ";" OBJECTS "${OBJECTS}")
foreach(object ${OBJECTS})
  execute_process(COMMAND ${NM} -C ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f]+ [WVu] [^\n]*" shared "${symbols}")
  if(shared)
    list(JOIN shared "\n  " lines)
    message(FATAL_ERROR "${object} defines symbols that other files may define too:\n  ${lines}")
  endif()
  if(NOT symbols MATCHES " T ringattn::cpu::")
    message(FATAL_ERROR "${object} defines no table of tiles: is it the right file?")
  endif()
endforeach()
