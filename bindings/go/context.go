package ringattn

// #include <ringattn/ringattn.h>
import "C"

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
)

// Context is one rank's membership in a group of ranks, with its threads, its engine and its memory.
//
// One goroutine at a time makes collective calls on it; the others get [ErrInvalidState]. All other methods may be called from any
// goroutine at any time. After [Context.Close] all say [ErrInvalidState].
type Context struct {
	_      noCopy
	handle *handle
}

// handle is what outlives the Context that leads to it: the cleanup needs it when that is gone.
//
// Whoever uses raw has mu for reading. Collective calls count themselves first, so that either they see that the context is closing,
// or Close sees them and ends them.
type handle struct {
	raw         *C.ra_context
	onDevice    bool // whether tensors are device memory
	mu          sync.RWMutex
	closed      sync.Once
	isClosing   atomic.Bool
	collectives atomic.Int32
}

// NewContext joins this rank to its group.
//
// Collective and blocking: returns when all config.WorldSize ranks have joined, each from a goroutine of its own, at the latest after
// config.Timeout. With a world size of 1 it returns at once. It takes no context.Context, as there is nothing to abort before there
// is a Context: config.Timeout, 5 minutes unless set, is what bounds it. Whoever has a context closes it; what nobody closes is freed
// some time after it has become unreachable.
//
// Errors: [ErrInvalidArgument], [ErrNotSupported] (backend, transport or engine; the message says what is missing), [ErrOutOfMemory],
// [ErrCUDAError], [ErrNCCLError], [ErrTimeout] (naming the first absent rank, but not over NCCL), [ErrMismatch] (ranks disagree on the
// world size, or a rank came twice), [ErrPeerLost]. A call that is refused uses up the id too: the group cannot form any more, the
// other ranks get [ErrPeerLost] or [ErrTimeout], and all begin again with a new id.
func NewContext(config ContextConfig) (*Context, error) {
	h := &handle{onDevice: config.Backend == BackendCUDA}
	err := run(func(f *frame) {
		var raw C.ra_context_config
		config.toC(&f.keeper, &raw)
		if f.refusal == nil {
			h.raw = C.ra_create_context(&raw, &f.err)
		}
	})
	if err != nil {
		return nil, err
	}
	c := &Context{handle: h}
	runtime.AddCleanup(c, (*handle).close, h)
	return c, nil
}

// Close leaves the group and frees everything; closing again does nothing. When it returns all is freed, whoever closes. A collective
// call that is in progress is ended as by [Context.Abort], and waited for. Other ranks get [ErrPeerLost] if they still wait for this
// one. On CUDA it waits until what calls have enqueued is over. Always nil.
func (c *Context) Close() error {
	if c != nil && c.handle != nil {
		c.handle.close()
	}
	return nil
}

func (h *handle) close() {
	h.closed.Do(func() {
		h.isClosing.Store(true)
		if h.collectives.Load() > 0 {
			C.ra_abort_context(h.raw, nil)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		C.ra_destroy_context(h.raw)
		h.raw = nil
	})
}

// enter keeps the context until leave, or says why there is none.
func (c *Context) enter() (*handle, error) {
	if c == nil || c.handle == nil {
		return nil, &Error{Status: StatusInvalidState, Rank: -1, Message: "the context was not made by NewContext"}
	}
	c.handle.mu.RLock()
	if c.handle.isClosing.Load() {
		c.handle.mu.RUnlock()
		return nil, &Error{Status: StatusInvalidState, Rank: -1, Message: "the context is closed"}
	}
	return c.handle, nil
}

func (c *Context) leave(h *handle) {
	h.mu.RUnlock()
	runtime.KeepAlive(c) // until here no cleanup closes it
}

// noCopy lets go vet find copies of a Context, which would be closed with the original.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}

// ---------------------------------------------------------------- collective calls

// Forward attends this rank's queries to the keys and values of all ranks.
//
// Collective: every rank calls it with an equal desc, in the same order. Out and LSE may not overlap each other, the inputs or the
// workspace. Results are bitwise equal from run to run, for any number of threads and any timing. On the CPU it returns when Out and
// LSE are complete; on CUDA it enqueues on args.Stream.
//
// When ctx is done before or during the call, the group is aborted, as by [Context.Abort]. The error then is [ErrAborted], or what had
// broken the group before, as [ErrPeerLost]; and it is ctx.Err(), and what else the call said, as [ErrInvalidArgument]: errors.Is
// finds each. A ctx that cannot be cancelled costs nothing.
//
// Errors: [ErrInvalidArgument] and [ErrNotSupported], found before anything is sent: the other ranks wait, and the call may be
// repeated with better arguments until their time-out, or Abort lets them go. After [ErrOutOfMemory], [ErrTimeout], [ErrPeerLost],
// [ErrMismatch], [ErrAborted], [ErrCUDAError], [ErrNCCLError] and [ErrInternalError] the context is of no more use and says
// [ErrInvalidState]. Outputs are untouched unless the call got as far as computing.
func (c *Context) Forward(ctx context.Context, desc AttentionDesc, args ForwardArgs) error {
	return c.collective(ctx, func(h *handle) error {
		return desc.run(func(f *frame) {
			f.onDevice = h.onDevice
			if args.toC(&f.keeper, &f.forward, &desc); f.refusal == nil {
				C.ra_forward(h.raw, &f.desc, &f.forward, &f.err)
			}
			f.forward = C.ra_forward_args{}
		})
	})
}

// Backward makes the gradients of [Context.Forward] with respect to this rank's q, k and v, given that of out.
//
// Collective, blocking, cancellation, overlap and errors as Forward. Gradients travel and accumulate in fp32 and are rounded once.
// Deterministic. Rows whose lse is -infinity have gradients 0.
func (c *Context) Backward(ctx context.Context, desc AttentionDesc, args BackwardArgs) error {
	return c.collective(ctx, func(h *handle) error {
		return desc.run(func(f *frame) {
			f.onDevice = h.onDevice
			if args.toC(&f.keeper, &f.backward, &desc); f.refusal == nil {
				C.ra_backward(h.raw, &f.desc, &f.backward, &f.err)
			}
			f.backward = C.ra_backward_args{}
		})
	})
}

// RunSelfTest runs small random problems, drawn from seed over every mask, sharding and dtype, and checks each against fp64 and its
// gradients against finite differences.
//
// Collective: all ranks give the same numProblems (1 .. 1000000) and seed. [ErrInternalError] names the first problem whose error
// exceeds twice that of a plain computation in fp32 stored in the same dtypes. Other errors, and cancellation, as Forward.
func (c *Context) RunSelfTest(ctx context.Context, numProblems, seed int64) error {
	return c.collective(ctx, func(h *handle) error {
		return run(func(f *frame) { C.ra_run_self_test(h.raw, C.int64_t(numProblems), C.int64_t(seed), &f.err) })
	})
}

// collective runs a call that waits for other ranks.
func (c *Context) collective(ctx context.Context, call func(*handle) error) error {
	if ctx == nil {
		return &Error{Status: StatusInvalidArgument, Rank: -1, Message: "ctx is nil"}
	}
	if c != nil && c.handle != nil {
		c.handle.collectives.Add(1)
		defer c.handle.collectives.Add(-1)
	}
	h, err := c.enter()
	if err != nil {
		return err
	}
	defer c.leave(h)

	if ctx.Done() == nil {
		return call(h)
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		C.ra_abort_context(h.raw, nil)
		close(ended)
	})
	if ctx.Err() == nil {
		err = call(h)
	}
	if !stop() {
		<-ended // the context must not be freed before
	} else if err == nil || ctx.Err() == nil {
		return err
	}
	return h.cancelled(ctx.Err(), err)
}

// cancelled is what a call says whose context.Context is done: what broke the group, be it this call's abort, that of a rank that was
// faster, or something else before. With it go the context.Context's error, and the call's own if it is of another status.
func (h *handle) cancelled(why, err error) error {
	var raw C.ra_error
	C.ra_get_async_error(h.raw, &raw)
	e, isBroken := errorOf(&raw).(*Error)
	if !isBroken {
		return err // ctx was done when the call had failed
	}
	e.causes = []error{why}
	if err != nil && !errors.Is(err, statusError(e.Status)) {
		e.causes = append(e.causes, err)
	}
	return e
}

// ---------------------------------------------------------------- from any goroutine

// Abort ends the call in progress, on this rank with [ErrAborted] and on all others with ErrAborted naming this rank, and returns
// without waiting for that. From then on the contexts of all ranks say [ErrInvalidState] until closed. Over NCCL the other ranks get
// [ErrPeerLost] when their time-out is over, and what is enqueued on this one ends with undefined results.
func (c *Context) Abort() error {
	return c.local(func(raw *C.ra_context, f *frame) { C.ra_abort_context(raw, &f.err) })
}

// AsyncError is nil until something has broken the group, else what did, with the rank that every rank names. It looks at what is
// known and asks nobody: the group is broken by [Context.Abort], or by a collective call that failed on any rank (not by one that was
// refused or found a wrong result), and all ranks know at once, also between calls. That a rank closed its context, or does not come,
// is known only when another has waited for it in a call. Over NCCL each rank finds out for itself, within its time-out.
func (c *Context) AsyncError() error {
	return c.local(func(raw *C.ra_context, f *frame) { C.ra_get_async_error(raw, &f.err) })
}

// Info is what the context is, with everything that its config left to the library.
func (c *Context) Info() (ContextInfo, error) {
	var x ContextInfo
	err := c.local(func(raw *C.ra_context, f *frame) {
		var info C.ra_context_info
		C.ra_init_context_info(&info, C.sizeof_ra_context_info)
		C.ra_get_context_info(raw, &info, &f.err)
		x.fromC(&info)
	})
	return x, err
}

// Statistics is what the last completed call did; all 0 before the first.
func (c *Context) Statistics() (CallStatistics, error) {
	var x CallStatistics
	err := c.local(func(raw *C.ra_context, f *frame) {
		var statistics C.ra_call_statistics
		C.ra_init_call_statistics(&statistics, C.sizeof_ra_call_statistics)
		C.ra_get_call_statistics(raw, &statistics, &f.err)
		x.fromC(&statistics)
	})
	return x, err
}

// CheckSupport says with which engine this context runs desc forward and backward, and on CUDA why not with another. Local. Errors:
// [ErrNotSupported] with the reason, or [ErrInvalidArgument] with the field, its value and the limit.
func (c *Context) CheckSupport(desc AttentionDesc) (string, error) {
	var engine string
	err := c.local(func(raw *C.ra_context, f *frame) {
		if desc.toC(&f.keeper, &f.desc); f.refusal == nil && C.ra_check_support(raw, &f.desc, &f.err) == C.RA_STATUS_SUCCESS {
			engine = C.GoString(&f.err.message[0])
		}
	})
	return engine, err
}

// MemoryRequirements is what this rank needs for desc, in bytes, and what its calls will do. Local; allocates nothing lasting.
// Errors: as [Context.CheckSupport].
func (c *Context) MemoryRequirements(desc AttentionDesc) (MemoryRequirements, error) {
	var x MemoryRequirements
	err := c.local(func(raw *C.ra_context, f *frame) {
		if desc.toC(&f.keeper, &f.desc); f.refusal == nil {
			x.get(func(requirements *C.ra_memory_requirements) {
				C.ra_get_memory_requirements(raw, &f.desc, requirements, &f.err)
			})
		}
	})
	return x, err
}

func (c *Context) local(call func(*C.ra_context, *frame)) error {
	h, err := c.enter()
	if err != nil {
		return err
	}
	defer c.leave(h)
	return run(func(f *frame) { call(h.raw, f) })
}
