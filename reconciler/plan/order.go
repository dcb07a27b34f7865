package plan

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"strings"
)

// order puts the remaining changes into the plan. What is deleted is ordered
// as if it were created, and then turned around.
func (m *maker) order() error {
	var builds, deletes []node
	for _, id := range m.ids() {
		c := m.changes[id]
		n := node{change: c, object: c.end(), system: m.system[id.System]}
		if c.Want == nil {
			deletes = append(deletes, n)
		} else {
			builds = append(builds, n)
		}
	}
	for _, nodes := range [][]node{builds, deletes} {
		sorted, err := sortByNeeds(nodes)
		if err != nil {
			return err
		}
		for i := range sorted {
			if sorted[i].change.Want == nil {
				i = len(sorted) - 1 - i
			}
			m.plan.Changes = append(m.plan.Changes, sorted[i].change)
		}
	}
	return nil
}

// Waves cuts the changes into groups, in order, such that within one group no
// change needs another and all are of one system and rank: those of a group may
// be carried out at once.
func (p *Plan) Waves() (waves [][]Change) {
	var in map[ID]bool
	for i, c := range p.Changes {
		if i == 0 || !sameWave(p.Changes[i-1], c) || touches(c, in) {
			waves, in = append(waves, nil), map[ID]bool{}
		}
		waves[len(waves)-1] = append(waves[len(waves)-1], c)
		if in[c.ID] = true; c.Want == nil {
			for _, need := range c.Have.Needs {
				in[need] = true // must not go in the same wave
			}
		}
	}
	return waves
}

func sameWave(a, b Change) bool {
	return a.ID.System == b.ID.System && (a.Want == nil) == (b.Want == nil) && a.end().Rank == b.end().Rank
}

// touches reports whether a change must come after one of those in a wave.
func touches(c Change, in map[ID]bool) bool {
	if in[c.ID] {
		return true
	}
	return c.Want != nil && slices.ContainsFunc(c.Want.Needs, func(need ID) bool { return in[need] })
}

// end is the end of a change whose needs and rank count: Want where there is one.
func (c Change) end() *Object {
	if c.Want != nil {
		return c.Want
	}
	return c.Have
}

// Broken is a set of changes that were not carried out.
type Broken map[ID]Change

// Add puts a change in.
func (b Broken) Add(c Change) { b[c.ID] = c }

// Blocks names the broken change for which another must not be tried: one that
// builds what it needs or, for a deletion, one that was to delete what needs it.
func (b Broken) Blocks(c Change) (by ID, ok bool) {
	if c.Want != nil {
		for _, need := range c.Want.Needs {
			if _, ok := b[need]; ok {
				return need, true
			}
		}
		return ID{}, false
	}
	for id, other := range b {
		if other.Have != nil && slices.Contains(other.Have.Needs, c.ID) {
			return id, true
		}
	}
	return ID{}, false
}

// node is a change on its way into the order.
type node struct {
	change Change
	object *Object // the end of the change whose needs count
	system int     // position of the system in the order of building
}

func (n node) compare(other node) int {
	return cmp.Or(
		cmp.Compare(n.system, other.system),
		cmp.Compare(n.object.Rank, other.object.Rank),
		n.change.ID.Compare(other.change.ID))
}

// sortByNeeds is Kahn's algorithm with a heap for the free nodes, so that of
// all orders that respect the needs it always takes the same one.
func sortByNeeds(nodes []node) ([]node, error) {
	at := make(map[ID]int, len(nodes))
	for i, n := range nodes {
		at[n.change.ID] = i
	}
	needs := make([]int, len(nodes)) // how many are not yet done
	neededBy := make([][]int, len(nodes))
	for i, n := range nodes {
		for _, need := range n.object.Needs {
			if j, ok := at[need]; ok {
				needs[i]++
				neededBy[j] = append(neededBy[j], i)
			}
		}
	}
	free := &nodeHeap{nodes: nodes}
	for i := range nodes {
		if needs[i] == 0 {
			heap.Push(free, i)
		}
	}
	sorted := make([]node, 0, len(nodes))
	for free.Len() > 0 {
		i := heap.Pop(free).(int)
		sorted = append(sorted, nodes[i])
		for _, j := range neededBy[i] {
			if needs[j]--; needs[j] == 0 {
				heap.Push(free, j)
			}
		}
	}
	if len(sorted) < len(nodes) {
		return nil, cycle(nodes, at, needs)
	}
	return sorted, nil
}

// cycle names one cycle among the nodes that were never free.
func cycle(nodes []node, at map[ID]int, needs []int) error {
	stuck := func(i int) bool { return needs[i] > 0 }
	i := 0
	for !stuck(i) {
		i++
	}
	// Every stuck node has a stuck need: following them must come around.
	var path []int
	position := map[int]int{}
	for {
		if start, seen := position[i]; seen {
			path = append(path[start:], i)
			break
		}
		position[i] = len(path)
		path = append(path, i)
		for _, need := range nodes[i].object.Needs {
			if j, ok := at[need]; ok && stuck(j) {
				i = j
				break
			}
		}
	}
	names := make([]string, len(path))
	for k, i := range path {
		names[k] = nodes[i].change.ID.String()
	}
	return fmt.Errorf("order the changes: the needs form a cycle: %s", strings.Join(names, " needs "))
}

// nodeHeap is a heap of indexes into nodes.
type nodeHeap struct {
	nodes []node
	index []int
}

func (h *nodeHeap) Len() int           { return len(h.index) }
func (h *nodeHeap) Less(i, j int) bool { return h.nodes[h.index[i]].compare(h.nodes[h.index[j]]) < 0 }
func (h *nodeHeap) Swap(i, j int)      { h.index[i], h.index[j] = h.index[j], h.index[i] }
func (h *nodeHeap) Push(x any)         { h.index = append(h.index, x.(int)) }
func (h *nodeHeap) Pop() any {
	last := h.index[len(h.index)-1]
	h.index = h.index[:len(h.index)-1]
	return last
}
