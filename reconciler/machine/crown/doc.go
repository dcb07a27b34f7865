// Package crown keeps the records of crowns in the cluster: what package roles
// decides, written down before it is done, so that a daemon that is killed between
// any two steps goes on from the objects alone.
//
// A record is an object of kind Crown. It is written whole, in one write, and only
// over the version that was read: of two daemons that decide at the same moment one
// stores his decision, and the other learns that he is late and acts on nothing. Who
// looks at `kubectl get crowns` reads the journal of each change of roles.
package crown
