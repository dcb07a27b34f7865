package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// enter logs in at a directory: a line of standard input is who, and the next the
// password.
func enter(address, ca string, in []byte) (*ldap.Conn, error) {
	who, password, _ := strings.Cut(strings.TrimSpace(string(in)), "\n")
	text, err := os.ReadFile(ca)
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate: %w", ca, err)
	}
	conn, err := ldap.DialURL("ldaps://"+address, ldap.DialWithDialer(&net.Dialer{Timeout: 3 * time.Second}),
		ldap.DialWithTLSConfig(&tls.Config{RootCAs: roots, ServerName: "directory.kingmaker-directory.svc"}))
	if err != nil {
		return nil, err
	}
	conn.SetTimeout(5 * time.Second)
	if err := conn.Bind(who, password); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// bind only logs in, and says why not where that fails.
func bind(address, ca string) error {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	conn, err := enter(address, ca, in)
	if err != nil {
		return err
	}
	return conn.Close()
}

// change gives whoever logs in another password, the third line of standard input.
func change(address, ca string) error {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(in)), "\n")
	if len(lines) != 3 {
		return errors.New("want three lines")
	}
	conn, err := enter(address, ca, in[:bytes.LastIndexByte(bytes.TrimSpace(in), '\n')])
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.PasswordModify(ldap.NewPasswordModifyRequest("", lines[1], lines[2]))
	return err
}

// enroll adds so many entries to a branch that it makes, one after the other, and says of each when
// it was acknowledged, as write does of files; login is a file with who and password.
func enroll(address, ca, login, below, count string) error {
	n, err := strconv.Atoi(count)
	in, e := os.ReadFile(login)
	if err := errors.Join(err, e); err != nil {
		return err
	}
	var conn *ldap.Conn
	for i := range n {
		name := fmt.Sprintf("e-%06d", i)
		entry := ldap.NewAddRequest("cn="+name+","+below, nil)
		entry.Attribute("objectClass", []string{"organizationalRole"})
		entry.Attribute("cn", []string{name})
		if i == 0 {
			entry = ldap.NewAddRequest(below, nil)
			entry.Attribute("objectClass", []string{"organizationalUnit"})
			unit, _, _ := strings.Cut(strings.TrimPrefix(below, "ou="), ",")
			entry.Attribute("ou", []string{unit})
		}
		for began := time.Now(); ; {
			if conn == nil {
				conn, err = enter(address, ca, in)
			}
			if err == nil {
				err = conn.Add(entry)
			}
			if err == nil || ldap.IsErrorWithCode(err, ldap.LDAPResultEntryAlreadyExists) {
				break // where the answer to an earlier try was lost
			}
			if conn != nil {
				conn.Close()
				conn = nil
			}
			fmt.Printf("%d no %q\n", time.Now().UnixNano(), err)
			if time.Since(began) > patience {
				return fmt.Errorf("%s cannot be added: %w", name, err)
			}
			time.Sleep(200 * time.Millisecond)
			err = nil
		}
		if i == 0 {
			continue
		}
		if _, err := fmt.Printf("%d ok %s %x\n", time.Now().UnixNano(), name, sha256.Sum256([]byte(name))); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// dump prints all entries of a server: the DN and its version, sorted.
func dump(address, ca, base string) error {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	conn, err := enter(address, ca, in)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetTimeout(time.Minute)
	found, err := conn.SearchWithPaging(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{"entryCSN"}, nil), 500)
	if err != nil {
		return err
	}
	var lines []string
	for _, e := range found.Entries {
		lines = append(lines, e.DN+" "+e.GetAttributeValue("entryCSN"))
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
	return nil
}
