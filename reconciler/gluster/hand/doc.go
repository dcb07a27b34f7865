// Package hand is what one machine does about bricks and volumes: it looks after
// its own brick and its own glusterd, mounts every volume of the site, and reports
// both. What is done to the pool as a whole is the steward's, in package gluster.
//
// All of it is level-triggered: each round looks at what is there and does what is
// missing. What the site said last stays good while the API is away, for a mount
// that breaks then is to be mended all the same; but nothing is taken away by the
// word of yesterday.
//
// Three things are never done. Nothing is written into a mount point that is not
// mounted: it is an immutable folder, and what Pods get to see is a folder below it
// that is only there when the mount is. No Pod is sent to a machine that has not
// proved its mount: the label of the Node says so, and goes first. And what a brick
// holds is never deleted: a former copy is put aside under another name.
package hand
