//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	registry "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// probeImage is the image of the probe, as ctr reads it.
func probeImage(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "probe")
	t.Setenv("CGO_ENABLED", "0")
	out, err := command("go", "build", "-trimpath", "-o", program, "./probe")
	must(t, out, err)
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "probe", Mode: 0o755, Size: int64(len(content))}), ignore(w.Write(content)), w.Close()); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Entrypoint = "linux", runtime.GOARCH, []string{"/probe"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	tag, err := registry.NewTag("kingmaker.dev/probe:e2e")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, img, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func ignore(_ int, err error) error { return err }

// clockAhead is the line of a master whose clock is ahead of ours: one cannot
// set the clock of a lab's machine, which is this computer's. It listens where
// the computer itself is on the lab's network.
func clockAhead(t *testing.T, by time.Duration) line {
	t.Helper()
	address := netip.MustParseAddr(getMachines(t)[0].Status.Inventory.Address).As4()
	address[3] = 1
	listener, err := net.Listen("tcp", netip.AddrPortFrom(netip.AddrFrom4(address), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	config, ca := authority(t, netip.AddrFrom4(address))
	kubeconfig, err := clientcmd.Write(clientcmdapi.Config{Clusters: map[string]*clientcmdapi.Cluster{
		"": {Server: "https://api.lab.internal:7443", CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})},
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(by).UTC().Format(http.TimeFormat))
		_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]string{"kubeconfig": string(kubeconfig)}})
	})}
	go func() { _ = server.Serve(tls.NewListener(listener, config)) }()
	t.Cleanup(func() { _ = server.Close() })
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return line{listener.Addr().String(), "sha256:" + hex.EncodeToString(sum[:]), "abcdef.0123456789abcdef"}
}

// authority is a CA, and what a server with a certificate of itself needs.
func authority(t *testing.T, address netip.Addr) (*tls.Config, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{address.AsSlice()},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}}, ca
}
