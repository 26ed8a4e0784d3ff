/* The header compiles on its own, first in a file, and a second time. */
#include <ringattn/ringattn.h>

#include <ringattn/ringattn.h>

extern int header_twice(void);

int header_twice(void) { return RA_VERSION_MAJOR; }
