// Command bench prints what a call costs in Go, for ./dev bench bindings: the median and the mean of calls of Forward, of one rank and
// thread with one head of 64 tokens and 64 dimensions. bindings/bench/call.c makes the same calls in C.
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
	first  = 2000 // calls that warm up and are not counted
)

func main() {
	log.SetFlags(0)
	calls := flag.Int("calls", 30000, "calls that are measured")
	flag.Parse()
	if *calls < 1 {
		log.Fatalf("--calls is %d; must be 1 at least", *calls)
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
	times, sum := make([]time.Duration, *calls), time.Duration(0)
	for call := -first; call < *calls; call++ {
		begin := time.Now()
		err := ranks.Forward(context.Background(), desc, ringattn.ForwardArgs{Q: ringattn.Packed(q[:]), K: ringattn.Packed(k[:]),
			V: ringattn.Packed(v[:]), Out: ringattn.Packed(out[:]), LSE: ringattn.Packed(lse[:])})
		if err != nil {
			log.Fatal(err)
		}
		if call >= 0 {
			times[call] = time.Since(begin)
			sum += times[call]
		}
	}
	slices.Sort(times)
	fmt.Printf("{\"language\": \"go\", \"median_ns\": %d, \"mean_ns\": %d}\n", times[*calls/2].Nanoseconds(), sum.Nanoseconds()/int64(*calls))
}
