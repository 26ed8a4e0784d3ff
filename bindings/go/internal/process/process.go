// Package process is the state of this process that a library might change, as C sees it: for tests that it does not.
package process

/*
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

static const char *variable(size_t i) { return environ[i]; }

// What a signal does, as text; 0 where there is no such signal.
static int disposition(int signal, char *text, size_t size) {
  struct sigaction now;
  if (sigaction(signal, NULL, &now) != 0) return 0;
  int length = snprintf(text, size, "%d: %p %x ", signal, (void *)now.sa_sigaction, (unsigned)now.sa_flags);
  for (int s = 1; s < 64; ++s) text[length++] = sigismember(&now.sa_mask, s) == 1 ? '1' : '0';
  text[length] = 0;
  return 1;
}

static struct sigaction before;

static void ignore(int signal) {
  struct sigaction action = {.sa_handler = SIG_IGN};
  sigaction(signal, &action, &before);
}
static void restore(int signal) { sigaction(signal, &before, NULL); }
*/
import "C"

// Dispositions says of each signal what it does: the handler, its flags and the signals that it blocks.
func Dispositions() []string {
	var all []string
	for signal := C.int(1); signal < 65; signal++ {
		var text [256]C.char
		if C.disposition(signal, &text[0], 256) != 0 {
			all = append(all, C.GoString(&text[0]))
		}
	}
	return all
}

// Ignored runs f while a signal is ignored, of which Go does not know.
func Ignored(signal int, f func()) {
	C.ignore(C.int(signal))
	defer C.restore(C.int(signal))
	f()
}

// Environment is that of C. Go has a copy of its own, which does not show what C changes.
func Environment() []string {
	var all []string
	for i := C.size_t(0); C.variable(i) != nil; i++ {
		all = append(all, C.GoString(C.variable(i)))
	}
	return all
}
