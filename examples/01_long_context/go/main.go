// One untrained attention head reads a book, on ranks that each hold a part of it.
//
//	induction_head.go   what the head looks at, and its output computed directly, in fp64
//	ranks.go            the same output computed by libringattn: every call of the library
//	main.go             how well the head guesses the next byte; the table; the JSON file
//
// The last 2,048 bytes of what is read are guessed, each from the `context` bytes before it, for longer and longer contexts. Every
// context is computed by one rank and by --ranks ranks, which are compared with each other and with fp64.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"ringattn.dev/go/ringattn"
)

// row is one context length. Memory is in bytes.
type row struct {
	Context              int64   `json:"context"`
	Accuracy             float64 `json:"accuracy"`          // share of the bytes that were the head's first guess
	BitsPerByte          float64 `json:"bits_per_byte"`     // 7 for a uniform guess among 128
	Seconds              float64 `json:"seconds"`           // of the attention call on all ranks
	TokensPerSecond      float64 `json:"tokens_per_second"` // scored tokens
	MemoryPerRank        uint64  `json:"memory_per_rank"`   // tensors and workspace
	MemoryOneRank        uint64  `json:"memory_one_rank"`   // the same where one rank does it all
	MaxDifferenceOneRank float64 `json:"max_difference_one_rank"`
	MaxDifferenceFP64    float64 `json:"max_difference_fp64"` // on 64 of the scored bytes
}

type rankMemory struct {
	WorldSize int32  `json:"world_size"`
	Bytes     uint64 `json:"bytes"`
}

type options struct {
	text     string
	output   string
	sharding ringattn.Sharding
	// Ends in Genesis 33, a place neither easy nor hard: of the bytes there 68 % are guessed right at this context, and between 58 and
	// 72 % at eight other places of the book.
	length int64
	ranks  int
}

// parse takes the text before, between or behind the options.
func parse(arguments []string) (o options, err error) {
	o.text = "build/demo/bible.txt"
	flags := flag.NewFlagSet("example_01_long_context", flag.ContinueOnError)
	flags.Int64Var(&o.length, "length", 131072, "bytes of it to read; 0: all")
	flags.IntVar(&o.ranks, "ranks", 4, "ranks that share them")
	flags.TextVar(&o.sharding, "sharding", ringattn.ShardingZigzag, "which bytes a rank owns: contiguous, zigzag or striped")
	flags.StringVar(&o.output, "output", "build/demo", "folder for context.json")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "One untrained attention head reads a book, on several ranks.\nusage: %s [text] [options]\n", flags.Name())
		flags.PrintDefaults()
	}
	for texts := 0; ; texts++ {
		if err := flags.Parse(arguments); err != nil {
			return o, err
		}
		if flags.NArg() == 0 {
			break
		}
		if texts == 1 {
			return o, fmt.Errorf("%s is one text too many", flags.Arg(0))
		}
		o.text, arguments = flags.Arg(0), flags.Args()[1:]
	}
	if o.length < 0 {
		return o, fmt.Errorf("--length is %d; must be 0 at least", o.length)
	}
	if o.ranks < 1 || o.ranks > 4096 {
		return o, fmt.Errorf("--ranks is %d; must be 1 .. 4096", o.ranks)
	}
	return o, nil
}

// readText is the whole file; bytes outside the alphabet become its last letter.
func readText(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s", path)
	}
	count := 0
	for i, b := range text {
		if b >= alphabet {
			text[i] = alphabet - 1
			count++
		}
	}
	if count > 0 {
		fmt.Fprintf(os.Stderr, "note: %d bytes of %s are not ASCII and count as one and the same letter\n", count, path)
	}
	return text, nil
}

// contexts are 1 Ki, 4 Ki, 16 Ki ... up to half the length, and the whole length.
func contexts(length int64) (all []int64) {
	for context := int64(1024); context <= length/2; context *= 4 {
		all = append(all, context)
	}
	return append(all, length)
}

// ---------------------------------------------------------------- scores

// score mixes in 2 % of the uniform distribution, so that no byte is impossible.
func (r *row) score(text []byte, length int64, out []float32) {
	for i := range int64(scored) {
		distribution := out[i*alphabet:][:alphabet]
		truth, guess := int(text[target(length, i)]), 0
		for b, probability := range distribution {
			if probability > distribution[guess] {
				guess = b
			}
		}
		if guess == truth {
			r.Accuracy += 1.0 / scored
		}
		r.BitsPerByte -= math.Log2(0.98*float64(distribution[truth])+0.02/alphabet) / scored
	}
}

func maxDifference(a, b []float32) (largest float64) {
	for i := range a {
		largest = max(largest, math.Abs(float64(a[i])-float64(b[i])))
	}
	return largest
}

// maxDifferenceFP64 is that of every 32nd row.
func maxDifferenceFP64(text []byte, length, context int64, out []float32) (largest float64) {
	const step = scored / 64
	var targets []int64
	for i := int64(0); i < scored; i += step {
		targets = append(targets, target(length, i))
	}
	for r, expected := range attendFP64(text, targets, context) {
		ours := out[r*step*alphabet:]
		for b, probability := range expected {
			largest = max(largest, math.Abs(float64(ours[b])-probability))
		}
	}
	return largest
}

// ---------------------------------------------------------------- output

// progress is a bar on stderr, drawn anew for each step; without a terminal, a line per step.
type progress struct {
	terminal    bool
	total, done int64
}

func newProgress(total int64) *progress {
	status, err := os.Stderr.Stat()
	return &progress{terminal: err == nil && status.Mode()&os.ModeCharDevice != 0, total: total}
}

func (p *progress) begin(format string, values ...any) {
	step := fmt.Sprintf(format, values...)
	if !p.terminal {
		fmt.Fprintf(os.Stderr, "%s ...\n", step)
		return
	}
	const width = 40
	bar := int(width * p.done / p.total)
	fmt.Fprintf(os.Stderr, "\r\033[K[%s%s] %3d %%  %s", strings.Repeat("#", bar), strings.Repeat(".", width-bar), 100*p.done/p.total, step)
}

// end wipes the bar, so that other output can follow.
func (p *progress) end(amount int64) {
	p.done += amount
	if p.terminal {
		fmt.Fprint(os.Stderr, "\r\033[K")
	}
}

// groupDigits is 131,072 for 131072.
func groupDigits(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", groupDigits(n/1000), n%1000)
}

func formatMemory(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func printColumns(columns ...any) {
	fmt.Printf("%9s  %8s  %9s  %8s  %8s  %11s  %11s  %11s  %10s\n", columns...)
}

func printHeading(o options, length int64) {
	fmt.Printf("One untrained attention head reads %s bytes of %s and guesses the last %s.\n", groupDigits(length), o.text, groupDigits(scored))
	fmt.Printf("ranks: %d, sharding: %s\n\n", o.ranks, strings.ToLower(o.sharding.String()))
	printColumns("", "guessed", "bits per", "", "", "memory", "memory with", "difference", "difference")
	printColumns("context", "right", "byte", "seconds", "tokens/s", "per rank", "one rank", "to one rank", "to fp64")
}

func (r *row) print() {
	printColumns(groupDigits(r.Context), fmt.Sprintf("%.1f %%", 100*r.Accuracy), fmt.Sprintf("%.2f", r.BitsPerByte),
		fmt.Sprintf("%.2f", r.Seconds), fmt.Sprintf("%.0f", r.TokensPerSecond), formatMemory(r.MemoryPerRank),
		formatMemory(r.MemoryOneRank), fmt.Sprintf("%.1e", r.MaxDifferenceOneRank), fmt.Sprintf("%.1e", r.MaxDifferenceFP64))
}

// ---------------------------------------------------------------- the demo

// computeAlone has one rank compute all contexts. It goes first and is gone when the others come: the tensors of the sequence are in
// memory once, not twice.
func computeAlone(o options, text []byte, length int64, rows []row, bar *progress) ([][]float32, error) {
	bar.begin("one rank: preparing")
	one, err := newRanks(text, length, 1, o.sharding)
	if err != nil {
		return nil, err
	}
	defer one.close()
	alone := make([][]float32, len(rows))
	for c := range rows {
		bar.begin("one rank: context %d", rows[c].Context)
		var failed error
		alone[c], err = one.forward(rows[c].Context)
		rows[c].MemoryOneRank, failed = one.memory(rows[c].Context)
		if err := errors.Join(err, failed); err != nil {
			return nil, err
		}
		bar.end(rows[c].Context)
	}
	return alone, nil
}

func run(o options) error {
	text, err := readText(o.text)
	if err != nil {
		return err
	}
	length := o.length
	if length == 0 {
		length = int64(len(text)) - 1 // the last byte is guessed, not read
	}
	if length < scored || length >= int64(len(text)) {
		return fmt.Errorf("--length is %d; %s has %d bytes, which allows %d to %d", length, o.text, len(text), scored, len(text)-1)
	}
	var rows []row
	var sum int64
	for _, context := range contexts(length) {
		rows = append(rows, row{Context: context})
		sum += context
	}
	bar := newProgress(2 * sum)
	alone, err := computeAlone(o, text, length, rows, bar)
	if err != nil {
		return err
	}
	runtime.GC() // or its tensors stay a while

	printHeading(o, length)
	bar.begin("%d ranks: preparing", o.ranks)
	all, err := newRanks(text, length, int32(o.ranks), o.sharding)
	if err != nil {
		return err
	}
	defer all.close()
	for c := range rows {
		r := &rows[c]
		bar.begin("%d ranks: context %d", o.ranks, r.Context)
		start := time.Now()
		out, err := all.forward(r.Context)
		r.Seconds = time.Since(start).Seconds()
		if err != nil {
			return err
		}
		if r.MemoryPerRank, err = all.memory(r.Context); err != nil {
			return err
		}
		r.TokensPerSecond = scored / r.Seconds
		r.MaxDifferenceOneRank = maxDifference(out, alone[c])
		r.MaxDifferenceFP64 = maxDifferenceFP64(text, length, r.Context, out)
		r.score(text, length, out)
		bar.end(r.Context)
		r.print()
	}

	var memory []rankMemory
	fmt.Printf("\nmemory per rank at %s bytes\n", groupDigits(length))
	for _, worldSize := range []int32{1, 2, 4, 8, 16} {
		bytes, err := estimateMemory(length, worldSize, o.sharding)
		if err != nil {
			return err
		}
		memory = append(memory, rankMemory{worldSize, bytes})
		plural := "s"
		if worldSize == 1 {
			plural = " "
		}
		fmt.Printf("%4d rank%s  %11s\n", worldSize, plural, formatMemory(bytes))
	}
	return write(o, length, rows, memory)
}

func write(o options, length int64, rows []row, memory []rankMemory) error {
	path := filepath.Join(o.output, "context.json")
	text, err := json.MarshalIndent(map[string]any{"text": o.text, "length": length, "scored": scored, "ranks": o.ranks,
		"sharding": strings.ToLower(o.sharding.String()), "rows": rows, "memory": memory}, "", "  ")
	if err == nil {
		err = os.MkdirAll(o.output, 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err == nil {
		fmt.Printf("\nwrote %s\n", path)
	}
	return err
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
