// Package crown keeps the roles of a site: the Keeper looks, asks package roles what
// the next step is, writes that down, and carries it out.
//
//	look.go     what there is: objects, read afresh, and each member of etcd
//	keeper.go   one turn: look, decide, record, act
//	act.go      each step
//	ticket.go   how one machine, and no other, gets to join again
//	work.go     the Pods that would have to move
//	store.go    the records
//
// What is decided is written down before it is done, so that a daemon that is killed
// between any two steps goes on from the objects alone.
//
// A record is an object of kind Crown. It is written whole, in one write, and only
// over the version that was read: of two daemons that decide at the same moment one
// stores his decision, and the other learns that he is late and acts on nothing. Who
// looks at `kubectl get crowns` reads the journal of each change of roles.
package crown
