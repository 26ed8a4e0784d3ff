# What LIBRARY asks of others (found by NM) is nothing that changes the process that it is in, ends it, or prints: signals, the environment, the
# locale, limits, folders, identities, other processes. Calls of C++ that end it are those that the compiler puts in place of exceptions.
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND ${NM} -D --undefined-only ${LIBRARY} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^ \n]+\n" imported "${symbols}")
list(TRANSFORM imported REPLACE "(@.*)?\n" "")
list(LENGTH imported count)
if(count LESS 10)
  message(FATAL_ERROR "${NM} finds ${count} imports of ${LIBRARY}: ${symbols}")
endif()
set(forbidden
  "(bsd_|sysv_)?signal|sigaction|sigprocmask|pthread_sigmask|sigaltstack|sigset|sigvec|siginterrupt|sigsuspend|raise|p?kill|tgkill|pthread_kill"
  "setitimer|timer_create|u?alarm|setenv|putenv|unsetenv|clearenv|environ|setlocale|uselocale|fesetround|fesetenv|feenableexcept|mallopt"
  "_?_?exit|_Exit|quick_exit|abort|__assert_fail|atexit|at_quick_exit|on_exit|pthread_atfork|v?fork|clone|posix_spawnp?|exec[lv]p?e?|system|popen"
  "setrlimit(64)?|prlimit(64)?|prctl|umask|f?chdir|chroot|set(re|res|e)?[ug]id|setpriority|nice|sched_set.*|pthread_setaffinity_np|mlockall"
  "(__)?v?f?d?printf(_chk)?|f?puts|f?putc|putchar|fwrite|perror|stdout|stderr|v?syslog|_ZSt4(cout|cerr|clog)|_ZSt5w(cout|cerr|clog)")
list(JOIN forbidden "|" pattern)
foreach(name IN LISTS imported)
  if(name MATCHES "^(${pattern})$")
    message(SEND_ERROR "imported: ${name}")
  endif()
endforeach()
