//go:build !race

package ringattn_test

const underRace = false
