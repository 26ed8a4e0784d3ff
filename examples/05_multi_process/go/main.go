// One rank, which is this process: forward and backward of a causal sequence that many processes share, on one machine or several.
//
// All that they need of each other is the text that --make-id prints. ../run.sh starts some, and hands it on in a file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"ringattn.dev/go/ringattn"
)

const heads, headsKV, dim = 4, 2, 64

// results are what a rank has computed: out, dq, dk and dv of its tokens, [tokens, heads, dim] each.
type results struct {
	of        [4][]float32
	positions []int64 // of its tokens in the whole sequence
	each      time.Duration
}

// compute is collective: forward and backward, so many times. Each element of an input is a function of its token's position, so that
// every process makes its own part.
func compute(config ringattn.ContextConfig, joined func(), tokens int64, repeats int) (*results, error) {
	rank, err := ringattn.NewContext(config) // returns when all ranks have come
	if err != nil {
		return nil, err
	}
	defer rank.Close()
	joined()

	desc := ringattn.NewAttentionDesc()
	desc.SeqlenQ, desc.NumHeadsQ, desc.NumHeadsKV, desc.HeadDim = tokens, heads, headsKV, dim
	desc.Mask = ringattn.MaskCausal
	desc.Sharding = ringattn.ShardingZigzag // equal work for all ranks under this mask
	count, err := desc.ShardLength(config.WorldSize, config.Rank, ringattn.SideQuery)
	if err != nil {
		return nil, err
	}
	positions := make([]int64, count)
	if err := desc.ShardPositions(config.WorldSize, config.Rank, ringattn.SideQuery, 0, positions); err != nil {
		return nil, err
	}
	input := func(tensor, heads int) ringattn.Tensor {
		elements := make([]float32, 0, len(positions)*heads*dim)
		for _, position := range positions {
			for i := range heads * dim {
				elements = append(elements, float32(math.Sin(0.7*float64(tensor+1)*float64(position+1)+float64(i))))
			}
		}
		return ringattn.Packed(elements)
	}
	r := results{positions: positions}
	for i, heads := range []int64{heads, heads, headsKV, headsKV} {
		r.of[i] = make([]float32, count*heads*dim)
	}
	forward := ringattn.ForwardArgs{Q: input(0, heads), K: input(1, headsKV), V: input(2, headsKV), Out: ringattn.Packed(r.of[0]),
		LSE: ringattn.Packed(make([]float32, count*heads))}
	backward := ringattn.BackwardArgs{DOut: input(3, heads), Q: forward.Q, K: forward.K, V: forward.V, Out: forward.Out, LSE: forward.LSE,
		DQ: ringattn.Packed(r.of[1]), DK: ringattn.Packed(r.of[2]), DV: ringattn.Packed(r.of[3])}
	begin := time.Now()
	for range repeats {
		if err := rank.Forward(context.Background(), desc, forward); err != nil {
			return nil, err
		}
		if err := rank.Backward(context.Background(), desc, backward); err != nil {
			return nil, err
		}
	}
	r.each = time.Since(begin) / time.Duration(repeats)
	return &r, nil
}

// compare is the largest difference of a rank's tokens to those of the whole, as a part of the largest number of a tensor.
func compare(own, whole *results) (worst float64) {
	for t, tensor := range whole.of {
		width, largest := len(tensor)/len(whole.positions), 0.0
		for _, x := range tensor {
			largest = max(largest, math.Abs(float64(x)))
		}
		for i, x := range own.of[t] {
			expected := tensor[int(own.positions[i/width])*width+i%width]
			worst = max(worst, math.Abs(float64(x-expected))/largest) // NaN if either is
		}
	}
	return worst
}

func run() error {
	config := ringattn.NewContextConfig()
	config.Transport = ringattn.TransportZeroMQ
	makesID := flag.Bool("make-id", false, "print the id of a new group and end")
	rank := flag.Int("rank", 0, "which one this process is")
	worldSize := flag.Int("world-size", 1, "ranks of the group")
	flag.StringVar(&config.UniqueID, "id", "", "of the group; others on this machine can see it, so rather")
	idFile := flag.String("id-file", "", "a file that has it")
	flag.StringVar(&config.BindAddress, "bind", "", "with --make-id, the address of rank 0; else one of this machine, for all that others send")
	timeout := flag.Int64("timeout", 30000, "longest wait for another rank, in milliseconds")
	tokens := flag.Int64("tokens", 1024, "of the whole sequence")
	repeats := flag.Int("repeats", 1, "forward and backward calls")
	flag.Parse()
	if *makesID {
		id, err := ringattn.NewUniqueID(ringattn.TransportZeroMQ, config.BindAddress)
		if err == nil {
			fmt.Println(id)
		}
		return err
	}
	if *idFile != "" {
		text, err := os.ReadFile(*idFile)
		if err != nil {
			return err
		}
		config.UniqueID = strings.TrimSpace(string(text))
	}
	config.Rank, config.WorldSize = int32(*rank), int32(*worldSize)
	config.Timeout = time.Duration(*timeout) * time.Millisecond
	name := fmt.Sprintf("rank %d of %d", *rank, *worldSize)

	expected, err := compute(ringattn.NewContextConfig(), func() {}, *tokens, 1) // by this process alone
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	found, err := compute(config, func() { fmt.Println(name, "is process", os.Getpid()) }, *tokens, *repeats)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	difference := compare(found, expected)
	fmt.Printf("%s: %d of %d tokens, forward and backward in %.1f ms, difference to one rank %.1e\n", name, len(found.positions), *tokens,
		found.each.Seconds()*1e3, difference)
	if !(difference <= 1e-5) {
		return errors.New(name + ": that is too much; at most 1e-05")
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
