//go:build race

package roles

// slow is true with the race detector, which makes the model some twenty times
// slower and finds little in a pure function: TestModel alone runs in full then.
const slow = true
