// Package roles decides who is master: when a dead one is replaced, by whom,
// and what the next step is. It keeps the number of masters that the site repo
// declares.
//
// Plan is a pure function: what it needs is in its arguments, and the same
// arguments give the same Decision. It decides at most one next step. Whoever
// carries it out (the executor) keeps nothing in his head: he stores the
// Decision's Record, does the Step, looks again, and asks again. So a daemon
// that was killed between any two of these goes on from the record alone.
//
//	record, on each kind of crown          the steps, in order; those that are done already are passed over
//	replace  a dead master, by an heir     Cordon Prepull Drain Reset DeleteNode | RemoveMember Fence                    | IssueKey Join Verify Cleanup Snapshot Close
//	grow     one master more               Cordon Prepull Drain Reset DeleteNode |                                       | IssueKey Join Verify Cleanup Snapshot Close
//	retire   one master less               Cordon Drain MoveLeader               | RemoveMember Fence Verify DeleteNode  | Snapshot Close
//	undone   the victim came back, or      Cleanup Fence(heir) RemoveMember(what the heir left) Close
//	         the heir failed
//
// Prepare first, remove last, add at once: up to the first bar nothing is lost,
// and a victim that returns undoes the crown (Cancel). So this part begins while
// the victim is merely silent, after half of failover.after. An heir that fails
// is undone too (RollBack); the next one is a new record, because then the same
// gates decide about him as about the first.
//
// What is promised, and proved by the test against a simulated site:
//
//   - A voter is removed only where the remaining ones that answer are a quorum
//     of the remaining, and, of those that answer, only for a declared count.
//   - There is one crown, one learner, one step at a time.
//   - A step that cannot be taken back is decided on fresh reads only. On others
//     the decision is to Recheck.
//   - Nothing happens to a paused machine, or in a suspended site, or after the
//     quorum was lost.
//   - Whatever holds something back has a code and a sentence for people.
//
// Alive is whoever gave a sign while this brain looked: his kubelet renewed the
// lease, his agent reported, his etcd answered. The times on these signs are by
// the clocks of others, so it counts when the brain noticed them, by its own
// (Memory). A brain that has just taken over knows nobody's silence, and the
// timers start afresh.
//
//	lease    heartbeat  etcd      the machine is
//	old      gone       away      silent; after failover.after dead: replaced
//	old      there      any       without kubelet: Repair
//	old      gone       answers   not dead: whose etcd answers is never removed; people are told
//	renewed  any        away      without etcd, which its kubelet restarts; people are told
//	any      "blank"    away      reinstalled or wiped: silent, for its data is gone
package roles
