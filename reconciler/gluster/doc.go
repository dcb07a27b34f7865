// Package gluster is the room of bricks and volumes.
//
// The site repo declares Volumes (volume.go), and validate.go refuses what makes no
// sense. The daemon's System (system.go) chooses the bricks of each, by decide.go and
// place.go, and writes the choice into a Volume object of the cluster: contract.go is
// all that passes between it and the machines. On the machines, one with a brick is
// the steward (steward.go), by a lease (lease.go): it looks at the pool (cli.go), and
// does one step after the other (steps.go), each decided by what it sees alone; what
// it sees it writes into the object's status (status.go). What each machine does for
// itself is in package hand. claims.go gives Pods a way to the volumes.
//
// No acknowledged write is lost by a step: see Next, mostOf and the model that tries
// it (model_test.go).
package gluster
