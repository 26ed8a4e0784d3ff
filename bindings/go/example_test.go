package ringattn_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"

	"ringattn.dev/go/ringattn"
)

// One rank, which needs no group: four tokens that see themselves and those before.
func Example() {
	ranks, err := ringattn.NewContext(ringattn.NewContextConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer ranks.Close()

	desc := ringattn.NewAttentionDesc()
	desc.SeqlenQ, desc.HeadDim, desc.Mask = 4, 2, ringattn.MaskCausal
	q, k := make([]float32, 4*2), make([]float32, 4*2) // all scores are 0: each token takes the mean of what it sees
	v := []float32{0, 0, 2, 4, 4, 8, 6, 12}
	out := make([]float32, 4*2)
	err = ranks.Forward(context.Background(), desc, ringattn.ForwardArgs{
		Q: ringattn.Packed(q), K: ringattn.Packed(k), V: ringattn.Packed(v), Out: ringattn.Packed(out),
	})
	fmt.Println(out, err)
	// Output: [0 0 1 2 2 4 3 6] <nil>
}

// Four ranks of one process, each in a goroutine of its own, share a sequence.
func Example_ranks() {
	const worldSize = 4
	id, err := ringattn.NewUniqueID(ringattn.TransportLocal, "")
	if err != nil {
		log.Fatal(err)
	}
	desc := ringattn.NewAttentionDesc()
	desc.SeqlenQ, desc.HeadDim = 1000, 64

	var group sync.WaitGroup
	for rank := range int32(worldSize) {
		group.Add(1)
		go func() {
			defer group.Done()
			config := ringattn.NewContextConfig()
			config.Rank, config.WorldSize, config.UniqueID = rank, worldSize, id
			ranks, err := ringattn.NewContext(config)
			if err != nil {
				log.Fatal(err)
			}
			defer ranks.Close()

			tokens, err := desc.ShardLength(worldSize, rank, ringattn.SideQuery)
			if err != nil {
				log.Fatal(err)
			}
			shard := func() ringattn.Tensor { return ringattn.Packed(make([]float32, tokens*desc.HeadDim)) }
			args := ringattn.ForwardArgs{Q: shard(), K: shard(), V: shard(), Out: shard()}
			if err := ranks.Forward(context.Background(), desc, args); err != nil {
				log.Fatal(err)
			}
		}()
	}
	group.Wait()
	fmt.Println("done")
	// Output: done
}

// A layer, from tokens to tokens, and the gradient of one of its weights.
func ExampleContext_MHAForward() {
	ranks, err := ringattn.NewContext(ringattn.NewContextConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer ranks.Close()

	desc := ringattn.NewAttentionDesc()
	desc.SeqlenQ, desc.HeadDim, desc.Mask = 2, 2, ringattn.MaskCausal
	mha := ringattn.NewMHADesc()
	mha.DModel, mha.Rotary = 2, ringattn.RotaryHalves
	activations, err := ranks.NewActivations(desc, mha)
	if err != nil {
		log.Fatal(err)
	}
	one := ringattn.Packed([]float32{1, 0, 0, 1}) // both the tokens and each matrix
	out := make([]float32, 4)
	forward := ringattn.MHAForwardArgs{X: one, WQ: one, WK: one, WV: one, WO: one, Out: ringattn.Packed(out), Activations: activations}
	err = ranks.MHAForward(context.Background(), desc, mha, forward)
	fmt.Println(out[:2], err)

	gradient := make([]float32, 4)
	backward := forward.Backward()
	backward.DOut, backward.DWO, backward.Reduce = one, ringattn.Packed(gradient), true
	err = ranks.MHABackward(context.Background(), desc, mha, backward)
	fmt.Println(gradient[0], err)
	// Output:
	// [1 0] <nil>
	// 1 <nil>
}

// A prompt of three tokens, whose scores are all equal, and what the last one sees; and another that begins with two of them.
func ExampleContext_Decode() {
	ranks, err := ringattn.NewContext(ringattn.NewContextConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer ranks.Close()
	cacheDesc := ringattn.NewKVCacheDesc()
	cacheDesc.NumPages, cacheDesc.NumHeadsKV, cacheDesc.HeadDim = 8, 1, 1
	cache, err := ranks.NewKVCache(cacheDesc)
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close()

	prompt, _ := cache.CreateSequence()
	err = ranks.Append(cache, ringattn.AppendArgs{
		Sequences: []int64{prompt}, NumTokens: 3, K: ringattn.Packed([]float32{0, 0, 0}), V: ringattn.Packed([]float32{1, 2, 6}),
	})
	if err != nil {
		log.Fatal(err)
	}
	other, _ := cache.ForkSequence(prompt) // shares the pages
	fmt.Println(cache.TruncateSequence(other, 2))

	desc := ringattn.NewAttentionDesc()
	desc.Batch, desc.SeqlenQ, desc.HeadDim, desc.Mask = 2, 1, 1, ringattn.MaskCausal
	out := make([]float32, 2)
	err = ranks.Decode(context.Background(), cache, desc, ringattn.DecodeArgs{
		Sequences: []int64{prompt, other}, Q: ringattn.Packed([]float32{0, 0}), Out: ringattn.Packed(out),
	})
	fmt.Println(out, err)
	// Output:
	// <nil>
	// [3 1.5] <nil>
}

// Errors have a status and say which field was wrong, its value and the limit.
func ExampleError() {
	ranks, err := ringattn.NewContext(ringattn.NewContextConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer ranks.Close()
	desc := ringattn.NewAttentionDesc()
	desc.SeqlenQ, desc.HeadDim = 4, 320
	_, err = ranks.CheckSupport(desc)
	fmt.Println(errors.Is(err, ringattn.ErrInvalidArgument), err)
	// Output: true ringattn: INVALID_ARGUMENT: head_dim is 320; must be 1 .. 256
}
