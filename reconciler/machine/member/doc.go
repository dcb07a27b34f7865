// Package member is how a machine becomes a member of a site, and ceases to be
// one: as its first master (Init), as a worker with the line that `reconcile
// token` prints (Join), and by leaving it (Reset).
//
// Each of the three asks first and changes then. Check looks at the machine, at
// the site repo or at the masters, and refuses with everything that a person
// has to know; a refused machine is as it was. Steps are what is to be done,
// and kubeadm is what does it. A mark in host.StateDir stands while a machine is
// neither in nor out, so that a try that was interrupted, wherever that was, is
// completed or begun afresh by the next one; and Reset takes back whatever is
// there. The folder of a brick is never touched.
//
// Nothing here trusts a network: a machine joins only a site whose CA it was
// given the hash of, and shows its token to nobody else.
package member
