// Package rfb watches what a VNC client sends (RFB, RFC 6143, and the extensions
// that noVNC and TigerVNC speak), to tell a person's input from all else: a client
// asks for updates, answers fences and measures itself for as long as a tab is
// open, and none of that is somebody at work.
//
// It promises to keep nothing of what passes by but a few bytes of the message
// that is on its way, and never to hold anything back: who pipes bytes shows them
// to a Watch beside. Where it meets what it does not know, it stops judging, and
// takes every byte for input from then on: a desktop that is stopped too late costs
// memory, one that is stopped too early costs work.
//
// A whole RFB library would be longer than this table of lengths.
package rfb

import "encoding/binary"

// A Watch follows one connection, from its first byte. The zero value is ready.
type Watch struct {
	at    func(*Watch) (input bool) // what is to do when the head is whole
	head  [12]byte                  // what is read of the current message
	have  int
	want  int
	skip  uint64 // bytes of the message that tell nothing
	left  int    // encodings that are still to come
	wide  bool   // the client knows pointer events with more buttons
	begun bool
	lost  bool
}

// Lost says whether it has met something unknown.
func (w *Watch) Lost() bool { return w.lost }

// See takes in the next bytes of the client, and says whether a person's input is
// among them: a message counts when enough of it is there to know it.
func (w *Watch) See(b []byte) (input bool) {
	if !w.begun {
		w.begun = true
		w.next(12, (*Watch).version)
	}
	for len(b) > 0 {
		if w.lost {
			return true
		}
		if w.skip > 0 {
			n := min(w.skip, uint64(len(b)))
			w.skip -= n
			b = b[n:]
			continue
		}
		n := copy(w.head[w.have:w.want], b)
		w.have += n
		b = b[n:]
		if w.have == w.want && w.at(w) {
			input = true
		}
	}
	return input || w.lost
}

// next reads n bytes into an empty head, more as many behind it.
func (w *Watch) next(n int, then func(*Watch) bool) { w.have, w.want, w.at = 0, n, then }
func (w *Watch) more(n int, then func(*Watch) bool) { w.want, w.at = w.have+n, then }

// done ends a message of which n more bytes come.
func (w *Watch) done(n uint64, input bool) bool {
	w.skip = n
	w.next(1, (*Watch).message)
	return input
}

func (w *Watch) give() bool {
	w.lost = true
	return true
}

// The handshake. The server offers the security type None and no other.
func (w *Watch) version() bool {
	switch string(w.head[:12]) {
	case "RFB 003.003\n": // the server chooses, and the client says nothing to it
		w.next(1, (*Watch).init)
	case "RFB 003.007\n", "RFB 003.008\n":
		w.next(1, (*Watch).security)
	default:
		return w.give()
	}
	return false
}

func (w *Watch) security() bool {
	if w.head[0] != 1 { // None
		return w.give()
	}
	w.next(1, (*Watch).init)
	return false
}

func (w *Watch) init() bool { return w.done(0, false) }

// message knows a message by its first byte.
func (w *Watch) message() bool {
	switch w.head[0] {
	case 0: // SetPixelFormat
		return w.done(19, false)
	case 2: // SetEncodings
		w.more(3, (*Watch).encodings)
	case 3: // FramebufferUpdateRequest
		return w.done(9, false)
	case 4: // KeyEvent
		return w.done(7, true)
	case 5: // PointerEvent
		w.more(1, (*Watch).pointer)
	case 6: // ClientCutText
		w.more(7, (*Watch).cutText)
	case 150: // EnableContinuousUpdates
		return w.done(9, false)
	case 248: // ClientFence
		w.more(8, (*Watch).fence)
	case 250: // xvp
		return w.done(3, false)
	case 251: // SetDesktopSize
		w.more(7, (*Watch).size)
	case 255: // QEMU's
		w.more(1, (*Watch).qemu)
	default:
		return w.give()
	}
	return false
}

func (w *Watch) encodings() bool {
	w.left, w.wide = int(binary.BigEndian.Uint16(w.head[2:])), false
	return w.nextEncoding()
}

func (w *Watch) nextEncoding() bool {
	if w.left == 0 {
		return w.done(0, false)
	}
	w.left--
	w.next(4, (*Watch).encoding)
	return false
}

// moreButtons is the pseudo-encoding ExtendedMouseButtons.
const moreButtons = -316

func (w *Watch) encoding() bool {
	if int32(binary.BigEndian.Uint32(w.head[:])) == moreButtons {
		w.wide = true
	}
	return w.nextEncoding()
}

// pointer is one byte longer where the mask of buttons says that a second comes.
// Where the server knows no such events that bit is a button, which hardly a mouse
// has; then the next message is taken for something unknown.
func (w *Watch) pointer() bool {
	if w.wide && w.head[1]&0x80 != 0 {
		return w.done(5, true)
	}
	return w.done(4, true)
}

// cutText has a length below zero for the extended clipboard.
func (w *Watch) cutText() bool {
	n := int64(int32(binary.BigEndian.Uint32(w.head[4:])))
	if n >= 0 {
		return w.done(uint64(n), true)
	}
	if n > -4 {
		return w.give()
	}
	w.more(4, (*Watch).clipboard)
	return false
}

// clipboard is input where the client has something new (notify) or hands it over
// (provide). That it asks for what the desktop has, and tells what it can, is done
// without anybody.
func (w *Watch) clipboard() bool {
	n := -int64(int32(binary.BigEndian.Uint32(w.head[4:])))
	const notify, provide = 1 << 27, 1 << 28
	return w.done(uint64(n-4), binary.BigEndian.Uint32(w.head[8:])&(notify|provide) != 0)
}

func (w *Watch) fence() bool { return w.done(uint64(w.head[8]), false) }

func (w *Watch) size() bool { return w.done(16*uint64(w.head[6]), false) }

// qemu has keys with their codes, which noVNC prefers, and sound.
func (w *Watch) qemu() bool {
	switch w.head[1] {
	case 0: // extended key event
		return w.done(10, true)
	case 1:
		w.more(2, (*Watch).sound)
		return false
	}
	return w.give()
}

func (w *Watch) sound() bool {
	switch binary.BigEndian.Uint16(w.head[2:]) {
	case 0, 1: // on, off
		return w.done(0, false)
	case 2: // the format
		return w.done(6, false)
	}
	return w.give()
}
