// Has nothing: what is compiled beside it are the headers that tests/CMakeLists.txt names.
