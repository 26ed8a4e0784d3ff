package ringattn

// #include <ringattn/ringattn.h>
import "C"

import "context"

// MHAForward is a layer of multi-head attention of this rank's tokens over those of all ranks, from the tokens themselves: it projects
// x, attends as [Context.Forward] does, and projects what comes out.
//
// Collective: every rank calls it with an equal desc and mha, and the same weights. The keys are the tokens of x: SeqlenKV is SeqlenQ,
// and key_bias and sinks are not part of a layer. What lies between (q, k, v and their attention) is stored in desc.DType; products are
// summed in fp32. Results are bitwise equal from run to run and for any number of threads. Products are oneDNN's, or on CUDA cuBLAS's,
// which is loaded when a layer is first asked for.
//
// Blocking, cancellation, overlap and errors as Forward; [ErrNotSupported] also where that is not found.
func (c *Context) MHAForward(ctx context.Context, desc AttentionDesc, mha MHADesc, args MHAForwardArgs) error {
	return c.collective(ctx, func(h *handle) error {
		return desc.run(func(f *frame) {
			f.onDevice = h.onDevice
			mha.toC(&f.keeper, &f.mha)
			if args.toC(&f.keeper, &f.mha_forward, &desc); f.refusal == nil {
				C.ra_mha_forward(h.raw, &f.desc, &f.mha, &f.mha_forward, &f.err)
			}
			f.mha, f.mha_forward = C.ra_mha_desc{}, C.ra_mha_forward_args{}
		})
	})
}

// MHABackward makes the gradients of [Context.MHAForward] with respect to x and the weights, as far as args has tensors for them, given
// that of out. Those of weights are of [DTypeFloat32]. [MHAForwardArgs.Backward] begins its arguments.
//
// Collective, blocking, cancellation, overlap and errors as MHAForward. Deterministic, sums over ranks included: these are made in an
// order of ranks that depends on nothing but the world size, and are the same bits on every rank.
func (c *Context) MHABackward(ctx context.Context, desc AttentionDesc, mha MHADesc, args MHABackwardArgs) error {
	return c.collective(ctx, func(h *handle) error {
		return desc.run(func(f *frame) {
			f.onDevice = h.onDevice
			mha.toC(&f.keeper, &f.mha)
			if args.toC(&f.keeper, &f.mha_backward, &desc); f.refusal == nil {
				C.ra_mha_backward(h.raw, &f.desc, &f.mha, &f.mha_backward, &f.err)
			}
			f.mha, f.mha_backward = C.ra_mha_desc{}, C.ra_mha_backward_args{}
		})
	})
}

// MHARequirements is what this rank needs for a layer, in bytes. Local. Errors: as [Context.MHAForward] of desc and mha.
func (c *Context) MHARequirements(desc AttentionDesc, mha MHADesc) (MHARequirements, error) {
	var x MHARequirements
	err := c.local(func(raw *C.ra_context, f *frame) {
		desc.toC(&f.keeper, &f.desc)
		mha.toC(&f.keeper, &f.mha)
		if f.refusal == nil {
			var requirements C.ra_mha_requirements
			C.ra_init_mha_requirements(&requirements, C.sizeof_ra_mha_requirements)
			C.ra_get_mha_requirements(raw, &f.desc, &f.mha, &requirements, &f.err)
			x.fromC(&requirements)
		}
		f.mha = C.ra_mha_desc{}
	})
	return x, err
}

// NewActivations makes what [Context.MHAForward] keeps for [Context.MHABackward]: MHAForwardArgs.Activations, written by the one and
// read by the other. It serves any number of such pairs of calls with this desc and mha, one pair after the other; what runs forward
// again before it ran backward needs one of its own. With [CheckpointInput] it is the zero Buffer, as the calls want it. Errors: as
// [Context.MHARequirements].
func (c *Context) NewActivations(desc AttentionDesc, mha MHADesc) (Buffer, error) {
	needs, err := c.MHARequirements(desc, mha)
	if err != nil {
		return Buffer{}, err
	}
	return NewBuffer(needs.Activations), nil
}

// AllReduce makes each number of data the sum of those in its place on all ranks: for what a model has beside attention, whose
// gradients are summed over ranks like those of a layer. Deterministic, and the same bits on every rank.
//
// Collective, with as many numbers on every rank; blocking, cancellation and errors as [Context.Forward], and on errors data holds what
// has been summed so far. CPU backend.
func (c *Context) AllReduce(ctx context.Context, data []float32) error {
	return c.collective(ctx, func(h *handle) error {
		return run(func(f *frame) {
			t := Packed(data)
			C.ra_init_reduce_args(&f.reduce, C.sizeof_ra_reduce_args)
			f.floats("data", &t, &f.reduce.data)
			f.reduce.data_size = C.size_t(t.memory.size)
			f.reduce.count = C.int64_t(len(data))
			C.ra_all_reduce(h.raw, &f.reduce, &f.err)
			f.reduce = C.ra_reduce_args{}
		})
	})
}
