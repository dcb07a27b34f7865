package sops

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Extension is how the names of key files end.
const Extension = ".agekey"

// HowTo says how a key is made and used.
const HowTo = "to make one: age-keygen -o age.agekey; to encrypt with it: sops encrypt --in-place --age age1... --encrypted-regex '^(data|stringData|initial|managed)$' FILE, where age1... is what age-keygen prints"

// Keys open files. The zero value opens none. They cannot be printed.
type Keys struct {
	identities []age.Identity
	recipients []string // what others encrypt for: public
}

// Empty reports whether there is no key.
func (k Keys) Empty() bool { return len(k.identities) == 0 }

// String is the public side of the keys.
func (k Keys) String() string { return strings.Join(k.recipients, ", ") }

// Format is String, whatever is asked for.
func (k Keys) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// maxKeyFile is more than any file of keys needs.
const maxKeyFile = 1 << 20

// LoadKeys reads all files *.agekey of a folder, as age-keygen writes them. A
// folder that has none, or is not there, gives no keys. A file that everybody
// on the computer can read is a fault.
func LoadKeys(dir string) (Keys, error) {
	var k Keys
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, badKey(err.Error(), "see whether the user of this process may read it")
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") || filepath.Ext(entry.Name()) != Extension {
			continue
		}
		if err := k.load(filepath.Join(dir, entry.Name())); err != nil {
			return Keys{}, err
		}
	}
	slices.Sort(k.recipients)
	return k, nil
}

func (k *Keys) load(file string) error {
	info, err := os.Stat(file) // a link in a mounted Secret
	if err != nil {
		return badKey(err.Error(), "")
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return badKey(fmt.Sprintf("%s can be read by everybody on this computer (mode %04o)", file, mode), "chmod 600 "+file)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return badKey(file+" is no file of keys", "want a file as age-keygen -o age.agekey writes it")
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return badKey(err.Error(), "see whether the user of this process may read it")
	}
	identities, err := age.ParseIdentities(bytes.NewReader(content))
	if err != nil {
		// err could quote it
		return badKey(file+" holds no age key", "want a file as age-keygen -o age.agekey writes it, with a line AGE-SECRET-KEY-...")
	}
	for _, identity := range identities {
		k.identities = append(k.identities, identity)
		switch i := identity.(type) {
		case *age.X25519Identity:
			k.recipients = append(k.recipients, i.Recipient().String())
		case *age.HybridIdentity:
			k.recipients = append(k.recipients, i.Recipient().String())
		}
	}
	return nil
}

func badKey(cause, hint string) *plan.Fault {
	return &plan.Fault{Code: BadKey, Cause: "read the age key: " + cause, Hint: hint}
}
