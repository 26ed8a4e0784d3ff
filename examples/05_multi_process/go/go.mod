module example_05_multi_process

go 1.24

require ringattn.dev/go/ringattn v0.0.0

replace ringattn.dev/go/ringattn => ../../../bindings/go
