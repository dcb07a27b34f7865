package git

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
)

// sshSession is git-upload-pack at the other end of ssh.
type sshSession struct {
	client *ssh.Client
	shell  *ssh.Session
	stdin  io.Writer
	stdout io.Reader
	stderr prefix
	meter  *meter

	advertised *packp.AdvRefs
	done       func() // of the watch over the context
}

// dialSSH connects, with the one key of the credentials, to a server that
// known_hosts knows. The connection ends with the context.
func dialSSH(ctx context.Context, at location, c Credentials, m *meter) (transport.UploadPackSession, error) {
	key, err := c.signer()
	if err != nil {
		return nil, err
	}
	known, err := c.hostKeys()
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(at.host, cmp.Or(at.port, "22"))
	var refusal error
	config := &ssh.ClientConfig{
		User: cmp.Or(at.user, cmp.Or(c.Username.Value(), "git")),
		Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		// Of the kinds of keys that known_hosts has, or a server with several
		// would seem to have changed its key.
		HostKeyAlgorithms: known.HostKeyAlgorithms(address),
		HostKeyCallback: func(host string, remote net.Addr, offered ssh.PublicKey) error {
			refusal = hostKeyFault(known.HostKeyCallback()(host, remote, offered), offered)
			return refusal
		},
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	s := &sshSession{meter: m, done: func() { stop() }}
	if err := s.start(conn, address, config, at); err != nil {
		stop()
		conn.Close()
		var mismatch *ssh.AlgorithmNegotiationError
		switch {
		case refusal != nil:
			return nil, refusal
		case errors.As(err, &mismatch) && len(config.HostKeyAlgorithms) > 0:
			return nil, fault(HostKeyMismatch, "the server has no key of a kind that known_hosts lists", "compare with what ssh-keyscan prints and with what the server's keeper says")
		case strings.Contains(err.Error(), "unable to authenticate"): // there is no type for it
			return nil, fault(AuthenticationFailed, "the server refuses this ssh key", "add its public half to the server as a deploy key")
		}
		return nil, err
	}
	return s, nil
}

func (s *sshSession) start(conn net.Conn, address string, config *ssh.ClientConfig, at location) error {
	c, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		return err
	}
	s.client = ssh.NewClient(c, channels, requests)
	if s.shell, err = s.client.NewSession(); err != nil {
		return err
	}
	s.shell.Stderr = &s.stderr
	if s.stdin, err = s.shell.StdinPipe(); err != nil {
		return err
	}
	if s.stdout, err = s.shell.StdoutPipe(); err != nil {
		return err
	}
	return s.shell.Start("git-upload-pack " + quote(at.path))
}

// hostKeyFault says what is wrong with a server's key.
func hostKeyFault(err error, offered ssh.PublicKey) error {
	switch {
	case err == nil:
		return nil
	case knownhosts.IsHostKeyChanged(err):
		return fault(HostKeyMismatch, "the server's key "+ssh.FingerprintSHA256(offered)+" is not the one in known_hosts",
			"someone may be posing as the server; if its keeper says that the key was replaced, put the new one into known_hosts")
	case knownhosts.IsHostUnknown(err):
		return fault(HostKeyUnknown, "the server's key "+ssh.FingerprintSHA256(offered)+" is not in known_hosts",
			"if its keeper says that this is the server's, add what ssh-keyscan prints to the file known_hosts beside identity")
	}
	return fault(HostKeyMismatch, "the server's key is refused: "+clean(err.Error(), nil), "compare known_hosts with what the server's keeper says")
}

// quote makes one word of a path for the shell of the server, as git does.
func quote(at string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(at) + "'"
}

func (s *sshSession) AdvertisedReferences() (*packp.AdvRefs, error) {
	return s.AdvertisedReferencesContext(context.Background())
}

func (s *sshSession) AdvertisedReferencesContext(context.Context) (*packp.AdvRefs, error) {
	s.advertised = packp.NewAdvRefs()
	err := s.advertised.Decode(s.meter.of(s.stdout, s.meter.refs, "what it says of its branches and tags"))
	switch {
	case errors.Is(err, packp.ErrEmptyAdvRefs), err == nil && s.advertised.IsEmpty():
		return nil, transport.ErrEmptyRemoteRepository
	case errors.Is(err, packp.ErrEmptyInput): // it said why on the other channel, and hung up
		s.shell.Wait()
		said := string(s.stderr.text)
		for _, missing := range []string{"not found", "not exist", "could not be found", "not appear to be a git repository", "no such", "access denied"} {
			if strings.Contains(strings.ToLower(said), missing) {
				return nil, transport.ErrRepositoryNotFound
			}
		}
		return nil, fmt.Errorf("the server says %q", said)
	case err != nil:
		return nil, err
	}
	transport.FilterUnsupportedCapabilities(s.advertised.Capabilities)
	return s.advertised, nil
}

func (s *sshSession) UploadPack(_ context.Context, request *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	if err := request.Validate(); err != nil {
		return nil, err
	}
	var message bytes.Buffer
	if err := errors.Join(request.UploadRequest.Encode(&message), request.UploadHaves.Encode(&message, false),
		pktline.NewEncoder(&message).EncodeString("done\n")); err != nil {
		return nil, err
	}
	if _, err := s.stdin.Write(message.Bytes()); err != nil {
		return nil, err
	}
	response := packp.NewUploadPackResponse(request)
	if err := response.Decode(io.NopCloser(s.meter.of(s.stdout, s.meter.pack, "the pack"))); err != nil {
		return nil, err
	}
	return response, nil
}

func (s *sshSession) Close() error {
	s.stdin.Write(pktline.FlushPkt) // so that the server, if it still waits, takes it for a leave
	s.done()
	return s.client.Close()
}

// prefix keeps the beginning of what is written.
type prefix struct{ text []byte }

func (p *prefix) Write(data []byte) (int, error) {
	p.text = append(p.text, data[:min(len(data), 4096-len(p.text))]...)
	return len(data), nil
}
