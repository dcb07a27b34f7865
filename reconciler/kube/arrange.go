package kube

import (
	"slices"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Arrange adds to objects, as git declares them, what planning has to know of
// their order and of what is lost with them.
func Arrange(objects plan.State) plan.State {
	things := newCatalog(objects)
	arranged := make(plan.State, len(objects))
	for _, o := range objects {
		arranged.Add(things.arrange(o))
	}
	return arranged
}

func (c catalog) arrange(o plan.Object) plan.Object {
	o.Rank, o.Precious = rank(o.ID), precious(o.ID, o.Spec)
	o.Needs = append(slices.Clone(o.Needs), c.needs(o.ID, namespaceOf(o.Spec))...)
	return o
}
