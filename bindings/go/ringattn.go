// Package ringattn is exact attention over a sequence that is split among many ranks: libringattn, in Go.
//
// Three steps, in the order in which a program meets them:
//
//	every rank makes a context           NewUniqueID, NewContextConfig, NewContext
//	a description says which attention   NewAttentionDesc, AttentionDesc.ShardLength, AttentionDesc.SplitSequence
//	all ranks call it together           Context.Forward, Context.Backward
//
// A whole layer of multi-head attention, from tokens to tokens and with the gradients of its weights, is [Context.MHAForward] and
// [Context.MHABackward], for a description and a [MHADesc]; [Context.AllReduce] sums what else a model has over all ranks.
//
// For decoding, a [KVCache] holds keys and values of sequences that grow, in pages over the ranks: [Context.NewKVCache],
// [Context.Append], [Context.Decode].
//
// A collective call returns when all ranks have made it, so that ranks of one process each need a goroutine of their own. Tensors are
// slices, [Packed] or [Strided], which belong to the call until it returns, or addresses of device memory, [Device].
//
// Every error that the library gives is an [*Error]; errors.Is(err, [ErrTimeout]) asks for its status. Messages call fields by their
// names in C: SeqlenKV is seqlen_kv.
//
// The shared library is found by pkg-config when a program is built, and by the dynamic linker when it starts.
package ringattn

/*
#cgo pkg-config: ringattn
#include <ringattn/ringattn.h>
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Version of the library that the program runs with, as in "0.1.0".
func Version() string { return loadedVersion().String() }

// GetCapabilities says what this build of the library can do on this machine.
func GetCapabilities() (Capabilities, error) {
	var x Capabilities
	var raw C.ra_capabilities
	C.ra_init_capabilities(&raw, C.sizeof_ra_capabilities)
	err := run(func(f *frame) { C.ra_get_capabilities(&raw, &f.err) })
	if err == nil {
		x.fromC(&raw)
	}
	return x, err
}

// NewUniqueID makes an id for one new group of ranks; one rank calls it and gives the text to the others, by any channel. It is a
// credential.
//
// bindAddress is the address that rank 0 will listen on ("host" or "host:port"), "" for loopback, and "" with [TransportLocal] and
// [TransportNCCL]. An id of the local transport is valid in the process that made it, for one group at a time. One of NCCL is
// listened for in this process, which has to live until the group has formed.
//
// Errors: [ErrInvalidArgument], [ErrNotSupported] (this build or machine lacks the transport), [ErrNCCLError].
func NewUniqueID(transport Transport, bindAddress string) (string, error) {
	var id C.ra_unique_id
	err := run(func(f *frame) {
		address := f.text("bind_address", bindAddress)
		if f.refusal == nil {
			C.ra_create_unique_id(&id, C.int32_t(transport), address, &f.err)
		}
	})
	if err != nil {
		return "", err
	}
	return C.GoString(&id.text[0]), nil
}

// EstimateMemory is [Context.MemoryRequirements] before any context or device exists: of config only Rank, WorldSize, Backend,
// Transport, NumThreads and Engine are read. Errors: as [NewContext] and [Context.CheckSupport].
func EstimateMemory(config ContextConfig, desc AttentionDesc) (MemoryRequirements, error) {
	var x MemoryRequirements
	err := desc.run(func(f *frame) {
		var raw C.ra_context_config
		config.toC(&f.keeper, &raw)
		if f.refusal == nil {
			x.get(func(requirements *C.ra_memory_requirements) {
				C.ra_estimate_memory(&raw, &f.desc, requirements, &f.err)
			})
		}
	})
	return x, err
}

// EstimateTime predicts how long a rank's calls take, by going through what all ranks do with a clock for each; comparable with
// [CallStatistics]. Counted are the products of visible pairs, and bytes, so that short calls take longer than this says. Of config only
// Rank and WorldSize are read. Takes as long as planning for every rank does. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY.
func EstimateTime(config ContextConfig, desc AttentionDesc, rates MachineRates) (TimeEstimate, error) {
	var x TimeEstimate
	err := desc.run(func(f *frame) {
		var raw C.ra_context_config
		config.toC(&f.keeper, &raw)
		var r C.ra_machine_rates
		rates.toC(&f.keeper, &r)
		if f.refusal == nil {
			x.get(func(estimate *C.ra_time_estimate) {
				C.ra_estimate_time(&raw, &f.desc, &r, estimate, &f.err)
			})
		}
	})
	return x, err
}

// get has the library fill it; on failure it stays as it is cleared.
func (x *MemoryRequirements) get(from func(*C.ra_memory_requirements)) {
	var raw C.ra_memory_requirements
	C.ra_init_memory_requirements(&raw, C.sizeof_ra_memory_requirements)
	from(&raw)
	x.fromC(&raw)
}

// get has the library fill it; on failure it stays as it is cleared.
func (x *TimeEstimate) get(from func(*C.ra_time_estimate)) {
	var raw C.ra_time_estimate
	C.ra_init_time_estimate(&raw, C.sizeof_ra_time_estimate)
	from(&raw)
	x.fromC(&raw)
}

// ---------------------------------------------------------------- shards

// ShardLength is how many tokens of one side rank owns, one of worldSize; may be 0. Local, no context needed. Errors:
// [ErrInvalidArgument].
func (d AttentionDesc) ShardLength(worldSize, rank int32, side Side) (int64, error) {
	var length C.int64_t
	err := d.run(func(f *frame) {
		length = C.ra_get_shard_length(&f.desc, C.int32_t(worldSize), C.int32_t(rank), C.int32_t(side), &f.err)
	})
	return int64(length), err
}

// ShardPosition is where in the whole sequence token index of that shard is, 0 <= index < ShardLength. Errors: [ErrInvalidArgument].
func (d AttentionDesc) ShardPosition(worldSize, rank int32, side Side, index int64) (int64, error) {
	var position C.int64_t
	err := d.run(func(f *frame) {
		position = C.ra_get_shard_position(&f.desc, C.int32_t(worldSize), C.int32_t(rank), C.int32_t(side), C.int64_t(index), &f.err)
	})
	return int64(position), err
}

// DropoutMask fills mask with which weights of one row dropout keeps: mask[n] for the key firstKey + n, whether the query sees it or
// not. entry is of the batch, head of Q; query and the keys are positions of the whole sequence. All true without dropout. For tests,
// and for those who compute a row by themselves. mask is untouched on errors: [ErrInvalidArgument].
func (d AttentionDesc) DropoutMask(entry, head, query, firstKey int64, mask []bool) error {
	return d.run(func(f *frame) {
		C.ra_get_dropout_mask(&f.desc, C.int64_t(entry), C.int64_t(head), C.int64_t(query), C.int64_t(firstKey),
			C.int64_t(len(mask)), (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(mask))), &f.err) // true is 1
	})
}

// ShardPositions fills positions with those of the shard's tokens first, first + 1, ...; the way to get many. It is untouched on
// errors. Errors: [ErrInvalidArgument], as where the shard has not so many tokens.
func (d AttentionDesc) ShardPositions(worldSize, rank int32, side Side, first int64, positions []int64) error {
	return d.run(func(f *frame) {
		C.ra_get_shard_positions(&f.desc, C.int32_t(worldSize), C.int32_t(rank), C.int32_t(side), C.int64_t(first),
			C.int64_t(len(positions)), (*C.int64_t)(unsafe.SliceData(positions)), &f.err)
	})
}

// SplitSequence copies the tokens that rank owns out of args.Whole into args.Shard. Local, host memory. Where the elements are not
// d.DType, as those of out, lse and gradients may be, set DType. For lse, [batch, head, n], set DType to [DTypeFloat32], Dim to 1
// and the strides to {NumHeads * n, 1, n}, where n is the length of Whole for its strides, and that of the shard for those of Shard.
// Errors: [ErrInvalidArgument].
func (d AttentionDesc) SplitSequence(worldSize, rank int32, args SequenceArgs) error {
	return d.run(func(f *frame) {
		var raw C.ra_sequence_args
		args.toC(&f.keeper, &raw, &d)
		if f.refusal == nil {
			C.ra_split_sequence(&f.desc, C.int32_t(worldSize), C.int32_t(rank), &raw, &f.err)
		}
	})
}

// JoinSequence is the reverse: it copies args.Shard to its places in args.Whole and leaves the other tokens as they are.
func (d AttentionDesc) JoinSequence(worldSize, rank int32, args SequenceArgs) error {
	return d.run(func(f *frame) {
		var raw C.ra_sequence_args
		args.toC(&f.keeper, &raw, &d)
		if f.refusal == nil {
			C.ra_join_sequence(&f.desc, C.int32_t(worldSize), C.int32_t(rank), &raw, &f.err)
		}
	})
}

// MergeAttention combines attention over two disjoint sets of keys into attention over their union: lse = log(exp(lse_a) +
// exp(lse_b)), out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b. Local, host memory. Errors: [ErrInvalidArgument].
func MergeAttention(args MergeArgs) error {
	return run(func(f *frame) {
		var raw C.ra_merge_args
		args.toC(&f.keeper, &raw)
		if f.refusal == nil {
			C.ra_merge_attention(&raw, &f.err)
		}
	})
}

// ---------------------------------------------------------------- version

type version struct{ major, minor, patch int32 }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

func loadedVersion() version {
	n := int32(C.ra_get_version())
	return version{n / 10000, n / 100 % 100, n % 100}
}

// refuse says why a library cannot serve a binding that was made for `made`, nil if it can.
func refuse(made, loaded version) *Error {
	var why string
	switch {
	case loaded.major != made.major:
		why = "has another major version"
	case made.major == 0 && loaded.minor != made.minor:
		why = "has another minor version, which before 1.0 may change the interface"
	case loaded.minor < made.minor || loaded.minor == made.minor && loaded.patch < made.patch:
		why = "is older"
	default:
		return nil
	}
	return &Error{Status: StatusNotSupported, Rank: -1,
		Message: fmt.Sprintf("libringattn %v %s than package ringattn was made for, %v", loaded, why, made)}
}

// What every call says where the library is not the one that this package was made for.
var unusable = refuse(generatedFrom, loadedVersion())
