// Command bench prints what a call costs in Go, for ./dev bench bindings: the median over rounds of 2,000 calls of Forward, of one rank
// and thread with one head of 64 tokens and 64 dimensions. bindings/bench/call.c makes the same calls in C.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"slices"
	"time"

	"ringattn.dev/go/ringattn"
)

const (
	tokens = 64
	dim    = 64
	calls  = 2000
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 21, "rounds that are measured")
	flag.Parse()
	if *rounds < 1 {
		log.Fatalf("--rounds is %d; must be 1 at least", *rounds)
	}
	config := ringattn.NewContextConfig()
	config.NumThreads = 1
	ranks, err := ringattn.NewContext(config)
	if err != nil {
		log.Fatal(err)
	}
	defer ranks.Close()

	desc := ringattn.NewAttentionDesc()
	desc.SeqlenQ, desc.HeadDim = tokens, dim
	var q, k, v, out [tokens * dim]float32
	var lse [tokens]float32
	for i := range q {
		q[i], k[i], v[i] = float32(i%7)/7, float32(i%5)/5, float32(i%3)/3
	}
	times := make([]float64, *rounds)
	for round := -1; round < *rounds; round++ { // the first warms up
		begin := time.Now()
		for range calls {
			err := ranks.Forward(context.Background(), desc, ringattn.ForwardArgs{Q: ringattn.Packed(q[:]), K: ringattn.Packed(k[:]),
				V: ringattn.Packed(v[:]), Out: ringattn.Packed(out[:]), LSE: ringattn.Packed(lse[:])})
			if err != nil {
				log.Fatal(err)
			}
		}
		if round >= 0 {
			times[round] = float64(time.Since(begin).Nanoseconds()) / calls
		}
	}
	slices.Sort(times)
	fmt.Printf("{\"language\": \"go\", \"ns_per_call\": %.1f}\n", times[*rounds/2])
}
