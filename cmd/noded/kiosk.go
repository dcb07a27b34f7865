package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
	"github.com/kingmaker-io/kingmaker/reconciler/machine/member"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// kioskEvery is how often the machine's own screen is looked at.
const kioskEvery = 20 * time.Second

// portalPort is the portal's on every machine: its Service's nodePort.
const portalPort = "30443"

// screen keeps the machine's own screen as the site wants it: a kiosk, or left alone.
type screen struct {
	host *host.Host

	mu    sync.Mutex
	kiosk bool  // it is one
	err   error // why it is not as it should be; nil where nothing has failed
}

// trouble is why the screen is no kiosk; nil: it is one.
func (s *screen) trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.kiosk {
		return errors.New("noded is at work on it") // it takes minutes where packages are to be installed
	}
	return s.err
}

// keep is at work until ctx ends. While the site is not heard all stays as it is.
func (s *screen) keep(ctx context.Context) {
	for {
		err := s.round(ctx)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		if err != nil && (s.err == nil || s.err.Error() != err.Error()) {
			s.host.Log.WarnContext(ctx, "kiosk", "error", err)
		}
		s.err = err
		s.mu.Unlock()
		if member.Wait(ctx, kioskEvery) != nil {
			return
		}
	}
}

func (s *screen) round(ctx context.Context) error {
	m, err := member.Read(s.host)
	if err != nil || m == nil || !s.host.Exists(member.Word(s.host)) {
		return nil // the agent logs what is wrong with that
	}
	config, err := m.Speak(s.host, version())
	if err != nil {
		return nil
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	own, err := client.Resource(machine.Resource()).Get(ctx, m.Name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	steps := []host.Step{host.NoKiosk(s.host)}
	kiosk, _, _ := unstructured.NestedBool(own.Object, "spec", "kiosk")
	if kiosk {
		k, err := portal(ctx, client, m.Address.String())
		if err == nil {
			steps, err = k.Steps(s.host)
		}
		if err != nil {
			return err
		}
	}
	if err := host.Do(ctx, steps, func(line string) { s.host.Log.InfoContext(ctx, "kiosk", "do", line) }); err != nil {
		return err
	}
	s.mu.Lock()
	s.kiosk = kiosk
	s.mu.Unlock()
	return nil
}

// portal is where a browser finds it, as the portal itself says.
func portal(ctx context.Context, client dynamic.Interface, address string) (k host.Kiosk, err error) {
	const namespace, name = "kingmaker-portal", "portal"
	found, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return k, errors.New("the site has no portal yet")
	}
	if err != nil {
		return k, fmt.Errorf("ask how to find the portal: %w", err)
	}
	data, _, err := unstructured.NestedStringMap(found.Object, "data")
	if err != nil {
		return k, fmt.Errorf("read ConfigMap %s/%s: %w", namespace, name, err)
	}
	if data["name"] != "" {
		address = data["name"]
	}
	return host.Kiosk{Portal: net.JoinHostPort(address, portalPort), Authority: []byte(data["ca.crt"])}, nil
}
