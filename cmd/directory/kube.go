package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	discovery "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
)

// Names of what is kept in the cluster. The Role in manifests/directory lists them.
const (
	stateName     = "directory"    // ConfigMap
	authorityName = "directory-ca" // Secret with the key; ConfigMap with the certificate alone
	serviceName   = "directory"    // Service without a selector; EndpointSlice with the writer alone
)

// kube is a Store in one namespace.
type kube struct {
	maps    typed.ConfigMapInterface
	secrets typed.SecretInterface
	slices  discovery.EndpointSliceInterface
}

// inCluster is the Store of a Pod.
func inCluster(namespace string) (Store, error) {
	if namespace == "" {
		return nil, fmt.Errorf("no namespace: give --namespace")
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	config.Timeout = 20 * time.Second
	client, err := typed.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	endpoints, err := discovery.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return kube{client.ConfigMaps(namespace), client.Secrets(namespace), endpoints.EndpointSlices(namespace)}, nil
}

func (k kube) read(ctx context.Context) (*corev1.ConfigMap, State, error) {
	m, err := k.maps.Get(ctx, stateName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, State{}, nil
	}
	if err != nil {
		return nil, State{}, fmt.Errorf("read the state of the directory: %w", err)
	}
	s := State{ID: m.Data["id"], Founder: m.Data["founder"], Writer: m.Data["writer"]}
	if text := m.Data["since"]; text != "" {
		if s.Since, err = time.Parse(time.RFC3339, text); err != nil {
			return nil, State{}, fmt.Errorf("read the state of the directory: since: %w", err)
		}
	}
	for name, into := range map[string]*int{"servers": &s.Servers, "beat": &s.Beat} {
		if text := m.Data[name]; text != "" {
			if *into, err = strconv.Atoi(text); err != nil {
				return nil, State{}, fmt.Errorf("read the state of the directory: %s: %w", name, err)
			}
		}
	}
	return m, s, nil
}

func (k kube) State(ctx context.Context) (State, error) {
	_, s, err := k.read(ctx)
	return s, err
}

func (k kube) Update(ctx context.Context, change func(*State) error) (State, error) {
	for {
		m, s, err := k.read(ctx)
		if err != nil {
			return State{}, err
		}
		before := s
		if err := change(&s); err != nil {
			return State{}, err
		}
		if s == before {
			return s, nil
		}
		data := map[string]string{"id": s.ID, "servers": strconv.Itoa(s.Servers), "writer": s.Writer, "beat": strconv.Itoa(s.Beat)}
		if s.Founder != "" {
			data["founder"], data["since"] = s.Founder, s.Since.Format(time.RFC3339)
		}
		if m == nil {
			_, err = k.maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: stateName}, Data: data}, metav1.CreateOptions{})
		} else {
			m = m.DeepCopy() // with the version that was read
			m.Data = data
			_, err = k.maps.Update(ctx, m, metav1.UpdateOptions{})
		}
		switch {
		case err == nil:
			return s, nil
		case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err):
			return State{}, fmt.Errorf("write the state of the directory: %w", err)
		case ctx.Err() != nil:
			return State{}, ctx.Err()
		}
	}
}

func (k kube) Secret(ctx context.Context, name string, make func() (map[string][]byte, error)) (map[string][]byte, error) {
	for {
		s, err := k.secrets.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return s.Data, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read secret %s: %w", name, err)
		}
		data, err := make()
		if err != nil {
			return nil, fmt.Errorf("make secret %s: %w", name, err)
		}
		_, err = k.secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}, metav1.CreateOptions{})
		switch {
		case err == nil:
			return data, nil
		case !apierrors.IsAlreadyExists(err):
			// Not the error's text: it may quote what was sent.
			return nil, fmt.Errorf("write secret %s: %s", name, apierrors.ReasonForError(err))
		}
	}
}

func (k kube) Publish(ctx context.Context, certificate []byte) error {
	want := map[string]string{"ca.crt": string(certificate)}
	m, err := k.maps.Get(ctx, authorityName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = k.maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: authorityName}, Data: want}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case err == nil && !maps.Equal(m.Data, want):
		m = m.DeepCopy()
		m.Data = want
		_, err = k.maps.Update(ctx, m, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			err = nil // another replica writes the same
		}
	}
	if err != nil {
		return fmt.Errorf("publish the certificate of the directory: %w", err)
	}
	return nil
}

// Serve writes the one endpoint of the Service.
func (k kube) Serve(ctx context.Context, address string) error {
	ip := net.ParseIP(address)
	if ip == nil {
		return fmt.Errorf("this replica has no address: %q", address)
	}
	family := discoveryv1.AddressTypeIPv4
	if ip.To4() == nil {
		family = discoveryv1.AddressTypeIPv6
	}
	name, port, protocol, ready := "ldaps", int32(1636), corev1.ProtocolTCP, true
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: serviceName, Labels: map[string]string{
			discoveryv1.LabelServiceName: serviceName, discoveryv1.LabelManagedBy: "kingmaker-directory",
		}},
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	have, err := k.slices.Get(ctx, serviceName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = k.slices.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && !(len(have.Endpoints) == 1 && slices.Equal(have.Endpoints[0].Addresses, want.Endpoints[0].Addresses)):
		want.ResourceVersion = have.ResourceVersion
		_, err = k.slices.Update(ctx, want, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write the endpoint of the directory: %w", err)
	}
	return nil
}
