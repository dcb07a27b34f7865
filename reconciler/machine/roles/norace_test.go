//go:build !race

package roles

// slow is true with the race detector.
const slow = false
