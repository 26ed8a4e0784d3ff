module ringattn.dev/go/ringattn

go 1.24
