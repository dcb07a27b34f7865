package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
)

// imagesEvery is how often it is looked whether the images of templates are brought.
const imagesEvery = 30 * time.Second

// bring has what brings the images of templates to every machine, and nothing that
// brings others.
func (k *Keeper) bring(ctx context.Context) error {
	if k.now().Sub(k.brought) < imagesEvery {
		return nil
	}
	k.brought = k.now()
	var templates []session.Template
	objects, _ := k.lists.templates.List(labels.Everything())
	for _, o := range objects {
		t, err := cluster.ReadTemplate(o.(*unstructured.Unstructured))
		if err != nil { // what it brought may be wanted still
			return fmt.Errorf("read a desktop template: %w", err)
		}
		templates = append(templates, t)
	}
	sets := k.Cluster.Client.AppsV1().DaemonSets(session.Namespace)
	have, err := sets.List(ctx, metav1.ListOptions{LabelSelector: session.ImageLabel})
	if err != nil {
		return fmt.Errorf("list what brings images: %w", err)
	}
	want := session.Images(templates)
	named := func(name string) func(*appsv1.DaemonSet) bool {
		return func(d *appsv1.DaemonSet) bool { return d.Name == name }
	}
	var there []*appsv1.DaemonSet
	var errs []error
	for i := range have.Items {
		d := &have.Items[i]
		there = append(there, d)
		if !slices.ContainsFunc(want, named(d.Name)) {
			if err := sets.Delete(ctx, d.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("delete DaemonSet %s: %w", d.Name, err))
			}
		}
	}
	for _, d := range want {
		if !slices.ContainsFunc(there, named(d.Name)) {
			if _, err := sets.Create(ctx, d, metav1.CreateOptions{FieldManager: "kingmaker-portal"}); err != nil && !apierrors.IsAlreadyExists(err) {
				errs = append(errs, fmt.Errorf("make DaemonSet %s: %w", d.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}
