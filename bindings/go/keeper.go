package ringattn

/*
#include <ringattn/ringattn.h>
#include <stdlib.h>

struct ringattn_go_call {
  ra_attention_desc desc;
  ra_forward_args forward;
  ra_backward_args backward;
  ra_mha_desc mha;
  ra_mha_forward_args mha_forward;
  ra_mha_backward_args mha_backward;
  ra_reduce_args reduce;
  ra_append_args append;
  ra_decode_args decode;
  ra_error err;
};
*/
import "C"

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"
)

// keeper has what C uses during one call: Go memory, pinned, so that its address may stand in C's, and copies of strings. What it was
// given and C should not see is in refusal.
type keeper struct {
	onDevice bool // whether the call is one over device memory
	pins     runtime.Pinner
	texts    []unsafe.Pointer
	refusal  *Error
}

func (k *keeper) release() {
	k.pins.Unpin()
	for _, text := range k.texts {
		C.free(text)
	}
	k.onDevice, k.texts, k.refusal = false, nil, nil
}

func (k *keeper) refuse(format string, values ...any) {
	if k.refusal == nil {
		k.refusal = &Error{Status: StatusInvalidArgument, Rank: -1, Message: fmt.Sprintf(format, values...)}
	}
}

// pointer writes the buffer's address to a pointer of a struct that C is given, which is no part of the stack. The other kind of
// memory than that of the call is refused: C would crash on the one, and use the other when the call is over and Go may have moved on.
func (k *keeper) pointer(name string, b *Buffer, to unsafe.Pointer) {
	switch {
	case b.device != 0 && !k.onDevice:
		k.refuse("%s is device memory; must be host memory, as in all calls but those of contexts with backend CUDA", name)
	case b.host != nil && k.onDevice:
		k.refuse("%s is host memory; must be device memory, as the backend is CUDA", name)
	}
	if b.host == nil {
		setAddress(b.device, to)
		return
	}
	k.pins.Pin(b.host)
	*(*unsafe.Pointer)(to) = b.host
}

// setAddress writes the address of what is none of Go's memory, which its pointers must not hold.
func setAddress(address uintptr, to unsafe.Pointer) { *(*uintptr)(to) = address }

// tensor refuses another dtype than that of the call, unless that is none: then C says so.
func (k *keeper) tensor(name string, t *Tensor, dtype DType, raw *C.ra_tensor) {
	if t.dtype != dtype && t.dtype != DTypeSame && DTypeFloat32 <= dtype && dtype <= DTypeFloat16 {
		k.refuse("%s is of %v; must be of %v", name, t.dtype, dtype)
	}
	raw.batch_stride = C.int64_t(t.strides.Batch)
	raw.seq_stride = C.int64_t(t.strides.Seq)
	raw.head_stride = C.int64_t(t.strides.Head)
	raw.size = C.size_t(t.memory.size)
	k.pointer(name, &t.memory, unsafe.Pointer(&raw.data))
}

// floats is a tensor that C takes as a plain pointer.
func (k *keeper) floats(name string, t *Tensor, to **C.float) {
	if t.dtype != DTypeFloat32 && t.dtype != DTypeSame {
		k.refuse("%s is of %v; must be of %v", name, t.dtype, DTypeFloat32)
	}
	if t.strides != (Strides{}) {
		k.refuse("%s has strides; must be packed", name)
	}
	k.pointer(name, &t.memory, unsafe.Pointer(to))
}

// list refuses another number of entries than C will read; nil is no list.
func list[T int64 | float32](k *keeper, name string, entries []T, count string, number int64) *T {
	if entries != nil && int64(len(entries)) != number {
		k.refuse("%s has %d entries; must have %s, %d", name, len(entries), count, number)
	}
	if len(entries) == 0 {
		return nil
	}
	k.pins.Pin(&entries[0])
	return &entries[0]
}

// text is NULL for "".
func (k *keeper) text(name, value string) *C.char {
	if value == "" {
		return nil
	}
	if i := strings.IndexByte(value, 0); i >= 0 {
		k.refuse("%s has a zero byte at %d; must be text", name, i)
	}
	text := C.CString(value)
	k.texts = append(k.texts, unsafe.Pointer(text))
	return text
}

// counted is how many things lists are of, which have factor entries for each and more entries besides: those of the first list that is
// given. What does not divide is refused when that list is kept.
func counted(factor, more int, lists ...[]int64) int {
	for _, entries := range lists {
		if entries != nil {
			return (len(entries) - more) / factor
		}
	}
	return 0
}

func flag(x bool) C.int32_t {
	if x {
		return 1
	}
	return 0
}

// milliseconds rounds away from 0, which means something else.
func milliseconds(d time.Duration) C.int64_t {
	whole := d / time.Millisecond
	switch part := d % time.Millisecond; {
	case part > 0:
		whole++
	case part < 0:
		whole--
	}
	return C.int64_t(whole)
}

// frame is the memory of one call. What C is given is C's memory, all of it 0 between calls: cgo then need not look for pointers in it.
type frame struct {
	keeper
	*memory
}

type memory C.struct_ringattn_go_call

var frames = sync.Pool{New: func() any {
	m := C.calloc(1, C.sizeof_struct_ringattn_go_call)
	f := &frame{memory: (*memory)(m)}
	runtime.AddCleanup(f, func(m unsafe.Pointer) { C.free(m) }, m)
	return f
}}

// run is what every function of the library that can fail is called in: call fills the frame and, unless something is refused, calls
// the library, whose error is the result.
func run(call func(*frame)) error {
	if unusable != nil {
		return unusable
	}
	f := frames.Get().(*frame)
	defer f.release()
	call(f)
	if f.refusal != nil {
		return f.refusal
	}
	return errorOf(&f.err)
}

// run is the same for a call that takes a description.
func (x *AttentionDesc) run(call func(*frame)) error {
	return run(func(f *frame) {
		if x.toC(&f.keeper, &f.desc); f.refusal == nil {
			call(f)
		}
	})
}

func (f *frame) release() {
	f.keeper.release()
	f.desc = C.ra_attention_desc{}
	f.err.status = C.RA_STATUS_SUCCESS
	frames.Put(f)
}
