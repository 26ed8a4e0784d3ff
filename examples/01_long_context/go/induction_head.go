// The head itself: what its queries, keys and values are, and its output computed directly, in fp64. Nothing here uses the library.
//
// An induction head looks for earlier places that were preceded by the same bytes as this one, and copies what came next there. It
// needs no training: with a token per byte,
//
//	key s    says what came before byte s: a unit vector along the sum over i = 1 .. 12 of 0.85^i sign(i, byte s - i),
//	         where sign(i, b) is a fixed random vector of +-1 for each pair of a distance and a byte
//	value s  is byte s, one-hot
//	query t  is the same vector as key t
//
// Random vectors of 128 signs are almost orthogonal, so the dot product of query t and key s is about the weighted share of preceding
// bytes in which t and s agree. The softmax sharpens that, and the output is a distribution over the next byte.

package main

import (
	"math"
	"slices"
	"sync"
)

const (
	dim          = 128 // of queries and keys
	alphabet     = 128 // of values and of the output: one dimension per ASCII character
	softmaxScale = 32

	reach = 12           // preceding bytes that a query or key describes
	decay = float32(.85) // weight of one more byte of distance
)

type (
	feature      [dim]float32
	distribution [alphabet]float64
)

// mersenneTwister is MT19937 (Matsumoto and Nishimura 1998), std::mt19937 in C++: every language has the same head.
type mersenneTwister struct {
	state [624]uint32
	next  int
}

func newMersenneTwister(seed uint32) *mersenneTwister {
	m := &mersenneTwister{next: 624}
	m.state[0] = seed
	for i := uint32(1); i < 624; i++ {
		m.state[i] = 1812433253*(m.state[i-1]^m.state[i-1]>>30) + i
	}
	return m
}

func (m *mersenneTwister) uint32() uint32 {
	if m.next == 624 {
		for i := range m.state {
			y := m.state[i]&0x80000000 | m.state[(i+1)%624]&0x7FFFFFFF
			m.state[i] = m.state[(i+397)%624] ^ y>>1 ^ y&1*0x9908B0DF
		}
		m.next = 0
	}
	y := m.state[m.next]
	m.next++
	y ^= y >> 11
	y ^= y << 7 & 0x9D2C5680
	y ^= y << 15 & 0xEFC60000
	return y ^ y>>18
}

// [i][b]: the random vector of byte b at distance i + 1, times its weight.
var weightedSigns = sync.OnceValue(func() *[reach][alphabet]feature {
	signs := new([reach][alphabet]feature)
	random := newMersenneTwister(1)
	weight := float32(1)
	for i := range signs {
		weight *= decay
		for b := range signs[i] {
			for d := range signs[i][b] {
				if signs[i][b][d] = weight; random.uint32()&1 == 0 {
					signs[i][b][d] = -weight
				}
			}
		}
	}
	return signs
})

// makeFeature is query and key of byte t of the text: the bytes before it, as a unit vector. Zero at the start of the text.
//
// Products are converted before they are added, so that no compiler fuses the two.
func makeFeature(text []byte, t int64) (sum feature) {
	signs := weightedSigns()
	for i := int64(0); i < reach && i < t; i++ {
		for d, sign := range &signs[i][text[t-1-i]] {
			sum[d] += sign
		}
	}
	var square float32
	for _, x := range sum {
		square += float32(x * x)
	}
	if square > 0 {
		length := float32(math.Sqrt(float64(square)))
		for d := range sum {
			sum[d] /= length
		}
	}
	return sum
}

// attendFP64 is the head's output for bytes targets, each of which sees the context bytes before it, in fp64 and from the definition: no
// blocks, no running maximum, no ranks.
func attendFP64(text []byte, targets []int64, context int64) []distribution {
	queries := make([]feature, len(targets))
	for row, t := range targets {
		queries[row] = makeFeature(text, t)
	}
	out := make([]distribution, len(targets))
	sum := make([]float64, len(targets))
	for s := max(0, slices.Min(targets)-context); s < slices.Max(targets); s++ {
		key := makeFeature(text, s)
		for row, t := range targets {
			if s >= t || s < t-context {
				continue
			}
			var dot float64
			for d, x := range &queries[row] {
				dot += float64(float64(x) * float64(key[d]))
			}
			// Unit vectors: no score exceeds the scale, so subtracting it instead of the row's maximum is safe in fp64.
			weight := math.Exp(softmaxScale * (dot - 1))
			out[row][text[s]] += weight
			sum[row] += weight
		}
	}
	for row := range out {
		for b := range out[row] {
			out[row][b] /= sum[row]
		}
	}
	return out
}
