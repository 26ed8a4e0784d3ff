package ringattn

/*
#include <ringattn/ringattn.h>

typedef const char ringattn_go_text;
extern void ringattn_go_log(int32_t level, ringattn_go_text *message, void *user_data);
*/
import "C"

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

var (
	logMutex    sync.Mutex
	logFunction atomic.Pointer[func(LogLevel, string)]
)

// SetLog sends log messages of minLevel and above to f; nil, as in the beginning, discards them. For the whole program; from any
// goroutine. When it returns, no call of the earlier function is in progress.
//
// f may be called from any goroutine, also at the same time, and must not call this package. What it panics with is dropped.
func SetLog(minLevel LogLevel, f func(level LogLevel, message string)) {
	logMutex.Lock()
	defer logMutex.Unlock()
	if f == nil {
		C.ra_set_log_callback(nil, nil, C.int32_t(minLevel))
		logFunction.Store(nil)
		return
	}
	logFunction.Store(&f)
	C.ra_set_log_callback(C.ra_log_callback(C.ringattn_go_log), nil, C.int32_t(minLevel))
}

// A goroutine of its own calls f, so that whatever ends that, a panic or runtime.Goexit, does not unwind C's frames.
//
//export ringattn_go_log
func ringattn_go_log(level C.int32_t, message *C.ringattn_go_text, _ unsafe.Pointer) {
	f := logFunction.Load()
	if f == nil {
		return
	}
	text := C.GoString((*C.char)(message))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		(*f)(LogLevel(level), text)
	}()
	<-done
}
