/* The header compiles on its own, first in a file, and a second time, which clang-format would remove. */
/* clang-format off */
#include <ringattn/ringattn.h>

#include <ringattn/ringattn.h>
/* clang-format on */

extern int header_twice(void);

int header_twice(void) { return RA_VERSION_MAJOR; }
