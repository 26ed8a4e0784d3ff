// The ranks that share the text: all calls of the library are in this file.
//
// The problem, in the library's words. There are `length` keys, one for each byte but the last, and `scored` queries:
//
//	key, value j   byte j, 0 <= j < length
//	query i        byte t = length - scored + i + 1, the one after the key that query i faces (bottom-right)
//	visible        j <= t - 1 by the causal mask, j >= t - context by WindowLeft = context - 1
//
// so a byte is never visible to its own query.

package main

import (
	"context"
	"errors"
	"sync"

	"ringattn.dev/go/ringattn"
)

const scored = 2048

func describe(length, reach int64, sharding ringattn.Sharding) ringattn.AttentionDesc {
	desc := ringattn.NewAttentionDesc()
	desc.SeqlenQ = scored
	desc.SeqlenKV = length
	desc.HeadDim = dim
	desc.HeadDimV = alphabet
	desc.SoftmaxScale = softmaxScale
	desc.Sharding = sharding
	desc.Mask = ringattn.MaskCausal
	desc.MaskAlignment = ringattn.MaskAlignmentBottomRight
	desc.WindowLeft = reach - 1
	desc.NumChunks = 32 // what travels at once is a fixed part of a shard, so that it shrinks as the ranks multiply
	return desc
}

// target is the byte of the text that query i guesses.
func target(length, i int64) int64 { return length - scored + i + 1 }

// ranks is a group of ranks in goroutines of this process; with another transport only the config differs.
type ranks struct {
	length    int64
	worldSize int32
	sharding  ringattn.Sharding
	each      []rank
}

// rank has its shards.
type rank struct {
	context      *ringattn.Context
	q, k, v, out []float32
}

func newRanks(text []byte, length int64, worldSize int32, sharding ringattn.Sharding) (*ranks, error) {
	group := &ranks{length, worldSize, sharding, make([]rank, worldSize)}
	id, err := ringattn.NewUniqueID(ringattn.TransportLocal, "")
	if err != nil {
		return nil, err
	}
	err = group.onEveryRank(func(r int32, rank *rank) (err error) {
		config := ringattn.NewContextConfig()
		config.Rank = r
		config.WorldSize = worldSize
		config.UniqueID = id
		if rank.context, err = ringattn.NewContext(config); err != nil {
			return err
		}
		return group.fill(r, rank, text)
	})
	if err != nil {
		group.close()
		return nil, err
	}
	return group, nil
}

func (g *ranks) close() {
	for _, rank := range g.each {
		rank.context.Close()
	}
}

// forward is [scored, alphabet]: the head's distribution over each scored byte.
func (g *ranks) forward(reach int64) ([]float32, error) {
	desc := describe(g.length, reach, g.sharding)
	whole := make([]float32, scored*alphabet)
	err := g.onEveryRank(func(r int32, rank *rank) error {
		err := rank.context.Forward(context.Background(), desc, ringattn.ForwardArgs{
			Q:   ringattn.Packed(rank.q),
			K:   ringattn.Packed(rank.k),
			V:   ringattn.Packed(rank.v),
			Out: ringattn.Packed(rank.out),
		})
		if err != nil {
			return err
		}
		// Every rank puts its rows where they belong; no two ranks write the same one.
		rows := ringattn.NewSequenceArgs()
		rows.NumHeads = 1
		rows.Dim = alphabet
		rows.Shard = ringattn.Packed(rank.out)
		rows.Whole = ringattn.Packed(whole)
		return desc.JoinSequence(g.worldSize, r, rows)
	})
	return whole, err
}

// memory is that of tensors and workspace of the rank that needs most, in bytes.
func (g *ranks) memory(reach int64) (most uint64, err error) {
	desc := describe(g.length, reach, g.sharding)
	for _, rank := range g.each {
		memory, err := rank.context.MemoryRequirements(desc)
		if err != nil {
			return 0, err
		}
		most = max(most, memory.ForwardTensors+memory.ForwardWorkspace)
	}
	return most, nil
}

// A collective call returns when all ranks have made it, so each rank needs a goroutine of its own to make it from. If one fails, the
// others need not wait for it until their time-out: they are let go.
func (g *ranks) onEveryRank(work func(r int32, rank *rank) error) error {
	failures := make([]error, len(g.each))
	var all sync.WaitGroup
	for r := range g.each {
		all.Add(1)
		go func() {
			defer all.Done()
			if failures[r] = work(int32(r), &g.each[r]); failures[r] != nil {
				_ = g.each[r].context.Abort() // says only that there is no context
			}
		}()
	}
	all.Wait()
	return errors.Join(failures...)
}

// A rank makes the tensors of its own tokens only: nobody ever holds those of the whole sequence.
func (g *ranks) fill(r int32, rank *rank, text []byte) error {
	queries, err := g.positions(r, ringattn.SideQuery)
	if err != nil {
		return err
	}
	keys, err := g.positions(r, ringattn.SideKeyValue)
	if err != nil {
		return err
	}
	rank.q = make([]float32, 0, len(queries)*dim)
	rank.k = make([]float32, 0, len(keys)*dim)
	rank.v = make([]float32, len(keys)*alphabet)
	rank.out = make([]float32, len(queries)*alphabet)
	for _, i := range queries {
		query := makeFeature(text, target(g.length, i))
		rank.q = append(rank.q, query[:]...)
	}
	for index, position := range keys {
		key := makeFeature(text, position)
		rank.k = append(rank.k, key[:]...)
		rank.v[index*alphabet+int(text[position])] = 1
	}
	return nil
}

// positions says where this rank's tokens are in the whole sequence.
func (g *ranks) positions(r int32, side ringattn.Side) ([]int64, error) {
	desc := describe(g.length, g.length, g.sharding)
	count, err := desc.ShardLength(g.worldSize, r, side)
	if err != nil {
		return nil, err
	}
	positions := make([]int64, count)
	return positions, desc.ShardPositions(g.worldSize, r, side, 0, positions)
}

// estimateMemory is what ranks.memory would say for the longest context, without making the ranks.
func estimateMemory(length int64, worldSize int32, sharding ringattn.Sharding) (most uint64, err error) {
	desc := describe(length, length, sharding)
	config := ringattn.NewContextConfig()
	config.WorldSize = worldSize
	for config.Rank = 0; config.Rank < worldSize; config.Rank++ {
		memory, err := ringattn.EstimateMemory(config, desc)
		if err != nil {
			return 0, err
		}
		most = max(most, memory.ForwardTensors+memory.ForwardWorkspace)
	}
	return most, nil
}
