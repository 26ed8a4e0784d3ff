package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ringattn.dev/go/ringattn"
)

// A rank whose call is refused does not leave the others waiting for it.
func TestOthersAreLetGo(t *testing.T) {
	group, err := newRanks(make([]byte, 5001), 5000, 3, ringattn.ShardingZigzag)
	if err != nil {
		t.Fatal(err)
	}
	defer group.close()
	group.each[1].k = nil
	begin := time.Now()
	_, err = group.forward(5000)
	// The others' calls end with ABORTED, or are refused because of it where they begin late.
	if !errors.Is(err, ringattn.ErrInvalidArgument) || !strings.Contains(err.Error(), "ABORTED") {
		t.Error(err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %v", took)
	}
}

// The program in C, which RINGATTN_EXAMPLE_C names, prints the same table, but for times.
func TestSameTableAsInC(t *testing.T) {
	program, found := os.LookupEnv("RINGATTN_EXAMPLE_C")
	if !found {
		t.Skip("RINGATTN_EXAMPLE_C is not set")
	}
	if os.Getenv("RINGATTN_EXAMPLE_RUN") != "" { // this test, run again by itself
		main()
		os.Exit(0)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("RINGATTN_EXAMPLE_RUN", "1")
	output := t.TempDir()
	var book []byte // the program's own text
	for _, name := range []string{"main.go", "ranks.go", "induction_head.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		book = append(book, text...)
	}
	text := filepath.Join(output, "text")
	if err := os.WriteFile(text, book, 0o600); err != nil {
		t.Fatal(err)
	}
	table := func(program string, arguments ...string) string {
		command := exec.Command(program, append(arguments, "--output", output)...)
		var errors bytes.Buffer
		command.Stderr = &errors
		text, err := command.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", program, err, &errors)
		}
		seconds := regexp.MustCompile(`(?m)^( *[0-9,]+ +\S+ % +\S+) +\S+ +\S+`)
		if rows := len(seconds.FindAll(text, -1)); rows < 2 {
			t.Fatalf("%s prints a table of %d rows:\n%s", program, rows, text)
		}
		return seconds.ReplaceAllString(string(text), "$1")
	}
	for _, arguments := range [][]string{
		{"main.go", "--length", "9000"},
		{"ranks.go", "--length", "5000", "--ranks", "3", "--sharding", "striped"},
	} {
		inC, inGo := table(program, arguments...), table(self, arguments...)
		if inC != inGo {
			t.Errorf("%q: in C\n%s\nin Go\n%s", arguments, inC, inGo)
		}
	}
}
