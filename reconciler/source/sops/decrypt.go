package sops

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"filippo.io/age"
	"filippo.io/age/armor"
	"go.yaml.in/yaml/v3"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// onlyEncrypted is what SOPS begins the proof of a file with that covers the
// encrypted values alone, so that it is never taken for one that covers all.
const onlyEncrypted = "8a3fd2ad54ce66527b1034f3d147be0b0b975b3bf44f72c6fdadec8176f27d69"

// fileKey is how many bytes the key of a file has: AES-256.
const fileKey = 32

// maxNonce is far more than SOPS ever took (32).
const maxNonce = 256

// Decrypt opens all values of a file, by their encrypted form. It is a fault
// when one cannot be opened, or when the file is not as its last editor left it.
// No fault quotes a value.
func (f *File) Decrypt(keys Keys) (map[string]plan.Secret, *plan.Fault) {
	key, fault := f.key(keys)
	if fault != nil {
		return nil, fault
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, f.fault(BadEncryption, f.line, "the key of the file is not one of AES-256", "encrypt the file anew")
	}
	opened := map[string]plan.Secret{}
	proof := sha512.New()
	if f.section.MACOnlyEncrypted {
		start, _ := hex.DecodeString(onlyEncrypted)
		proof.Write(start)
	}
	for _, root := range f.documents {
		fault := f.walk(root, nil, func(n *yaml.Node, path []string) *plan.Fault {
			var content any
			n.Decode(&content) // as SOPS does: what does not decode is nothing
			if content == nil {
				return nil
			}
			encrypted := f.encrypted(path)
			if encrypted && content != "" {
				text, ok := content.(string)
				if !ok || !isValue(text) {
					return f.at(BadEncryption, n, path, "the value stands in the clear, and the section sops says that it is encrypted", "encrypt it: sops edit FILE, or decrypt the file and encrypt it anew")
				}
				plain, err := open(block, text, strings.Join(path, ":")+":")
				if err != nil {
					return f.at(Tampered, n, path, "the value cannot be decrypted: it was changed, or moved here from elsewhere", "change encrypted files with sops edit only")
				}
				if content, err = typed(plain, TypeOf(text)); err != nil {
					return f.at(UnsupportedSOPS, n, path, "the value is of a type that Kingmaker does not read: "+TypeOf(text), "put it in quotes, and encrypt the file anew")
				}
				if plain, _ := content.(string); !utf8.ValidString(plain) {
					return f.at(BadEncryption, n, path, "the value is not text", "keep bytes as base64")
				}
				opened[text] = plan.SecretOf(simple(content))
			}
			if encrypted || !f.section.MACOnlyEncrypted {
				io.WriteString(proof, asBytes(content))
			}
			return nil
		})
		if fault != nil {
			return nil, fault
		}
	}
	want, err := open(block, f.section.MAC, f.modified)
	if err != nil || subtle.ConstantTimeCompare([]byte(strings.ToLower(want)), []byte(hex.EncodeToString(proof.Sum(nil)))) != 1 {
		return nil, f.fault(Tampered, f.line, "the file was changed after it was encrypted: its MAC is that of another content", "change encrypted files with sops edit only; where the change is meant, sops edit --ignore-mac FILE proves it anew")
	}
	return opened, nil
}

// key is the key of the file, opened with one of ours.
func (f *File) key(keys Keys) ([]byte, *plan.Fault) {
	if keys.Empty() {
		return nil, f.fault(NoKey, f.line, "the file is encrypted, and there is no key to open it", "put its age key into a file age.agekey in the folder of --credentials; "+HowTo)
	}
	var recipients []string
	for _, r := range f.section.Age {
		recipients = append(recipients, r.Recipient)
		opened, err := age.Decrypt(armor.NewReader(strings.NewReader(r.Enc)), keys.identities...)
		if err != nil {
			continue // it is for somebody else
		}
		key, err := io.ReadAll(io.LimitReader(opened, fileKey+1))
		if err != nil || len(key) != fileKey {
			return nil, f.fault(BadEncryption, f.line, "the key of the file is not one of AES-256", "encrypt the file anew")
		}
		return key, nil
	}
	return nil, f.fault(WrongKey, f.line, "the file is encrypted for "+strings.Join(recipients, ", ")+", and the key in the folder of --credentials is "+keys.String(),
		"add the site's key to the file: sops rotate --in-place --add-age "+keys.String()+" FILE")
}

// at is a fault of one value.
func (f *File) at(code plan.Code, n *yaml.Node, path []string, cause, hint string) *plan.Fault {
	fault := f.fault(code, n.Line, cause, hint)
	field := make([]any, len(path))
	for i, key := range path {
		field[i] = key
	}
	fault.Field = plan.Field(field...)
	return fault
}

// open decrypts one value. What it is bound to is the place that it stands in.
func open(block cipher.Block, text, boundTo string) (string, error) {
	m := value.FindStringSubmatch(text)
	if m == nil || m[0] != text {
		return "", errors.New("not an encrypted value")
	}
	var parts [3][]byte
	for i := range parts {
		var err error
		if parts[i], err = base64.StdEncoding.DecodeString(m[i+1]); err != nil {
			return "", err
		}
	}
	if n := len(parts[1]); n == 0 || n > maxNonce {
		return "", errors.New("a nonce of no size")
	}
	gcm, err := cipher.NewGCMWithNonceSize(block, len(parts[1]))
	if err != nil {
		return "", err
	}
	plain, err := gcm.Open(nil, parts[1], append(parts[0], parts[2]...), []byte(boundTo))
	return string(plain), err
}

// typed is a decrypted text as the value that it was.
func typed(plain, kind string) (any, error) {
	switch kind {
	case "str", "bytes":
		return plain, nil
	case "int":
		return strconv.Atoi(plain)
	case "float":
		return strconv.ParseFloat(plain, 64)
	case "bool":
		return strconv.ParseBool(plain)
	case "time":
		var at time.Time
		err := at.UnmarshalText([]byte(plain))
		return at, err
	}
	return nil, errors.New("an unknown type")
}

// simple is a value as a document holds it: a time is text there.
func simple(content any) any {
	switch v := content.(type) {
	case int:
		return int64(v)
	case time.Time:
		return asBytes(v)
	}
	return content
}

// asBytes is the form of a value that goes into the proof.
func asBytes(content any) string {
	switch v := content.(type) {
	case string:
		return v
	case int:
		return strconv.Itoa(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case uint64:
		return strconv.FormatUint(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case bool:
		if v {
			return "True"
		}
		return "False"
	case time.Time:
		text, _ := v.MarshalText()
		return string(text)
	}
	return ""
}
