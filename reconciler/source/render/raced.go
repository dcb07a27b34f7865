//go:build race

package render

// raced tells a program that the race detector is built into.
const raced = true
