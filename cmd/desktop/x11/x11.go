// Package x11 asks an X server the few things that tell whether a desktop is
// painted, and makes the file by which its clients are let in. It is an X client of
// three requests; a library of all of them would be a hundred times its size.
package x11

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A Cookie lets clients in (MIT-MAGIC-COOKIE-1).
type Cookie [16]byte

const protocol = "MIT-MAGIC-COOKIE-1"

// Authority is what a file of XAUTHORITY holds, so that clients show the cookie to
// whatever display they are told of.
func (c Cookie) Authority() []byte {
	const anywhere = 0xffff // FamilyWild
	b := binary.BigEndian.AppendUint16(nil, anywhere)
	for _, field := range []string{"", "", protocol, string(c[:])} { // address, display, name, data
		b = binary.BigEndian.AppendUint16(b, uint16(len(field)))
		b = append(b, field...)
	}
	return b
}

// A Screen is what a look at the screen has found.
type Screen struct {
	Manager bool // a window manager is there, and lives
	Lit     int  // how many percent of the screen are not black, as it is when nothing is on it
}

// Look asks the server of a UNIX socket. It answers within a second or two, or
// errs.
func Look(socket string, cookie Cookie) (s Screen, err error) {
	nc, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return s, fmt.Errorf("ask the X server: %w", err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(2 * time.Second)) // a connection of the net always can
	if s, err = look(nc, cookie); err != nil {
		return s, fmt.Errorf("ask the X server: %w", err)
	}
	return s, nil
}

func look(nc io.ReadWriter, cookie Cookie) (s Screen, err error) {
	c := conn{nc}
	root, err := c.hello(cookie)
	if err != nil {
		return s, err
	}
	check, err := c.atom("_NET_SUPPORTING_WM_CHECK")
	if err != nil || check == 0 { // nobody has ever said the word
		return s, err
	}
	// The window that the root names must name itself: what a dead manager left
	// behind does not.
	own, err := c.windows(root.id, check)
	if err != nil || len(own) != 1 {
		return s, err
	}
	self, err := c.windows(own[0], check)
	if err != nil || len(self) != 1 || self[0] != own[0] {
		return s, err
	}
	s.Manager = true
	s.Lit, err = c.lit(root)
	return s, err
}

// conn speaks the protocol with the low byte first. One request is on its way at a
// time, and no events are asked for: what comes is an answer.
type conn struct{ io.ReadWriter }

var order = binary.LittleEndian

func pad(n int) int { return (n + 3) &^ 3 }

// A root is the window behind all others.
type root struct {
	id            uint32
	width, height uint16
}

// hello opens the connection, and gives the root window of the first screen.
func (c conn) hello(cookie Cookie) (r root, err error) {
	b := []byte{'l', 0, 11, 0, 0, 0}
	b = order.AppendUint16(b, uint16(len(protocol)))
	b = order.AppendUint16(b, uint16(len(cookie)))
	b = append(b, 0, 0)
	b = append(b, protocol...)
	b = append(b, make([]byte, pad(len(protocol))-len(protocol))...)
	b = append(b, cookie[:]...)
	if _, err := c.Write(b); err != nil {
		return r, err
	}
	head := make([]byte, 8)
	if _, err := io.ReadFull(c, head); err != nil {
		return r, err
	}
	rest := make([]byte, 4*int(order.Uint16(head[6:])))
	if _, err := io.ReadFull(c, rest); err != nil {
		return r, err
	}
	if head[0] != 1 {
		return r, fmt.Errorf("it refuses: %s", rest[:min(int(head[1]), len(rest))])
	}
	if len(rest) < 32 {
		return r, errors.New("its welcome is too short")
	}
	// Vendor's name and pixel formats come before the screens.
	at := 32 + pad(int(order.Uint16(rest[16:]))) + 8*int(rest[21])
	if rest[20] == 0 || len(rest) < at+24 {
		return r, errors.New("it has no screen")
	}
	return root{order.Uint32(rest[at:]), order.Uint16(rest[at+20:]), order.Uint16(rest[at+22:])}, nil
}

// ask sends a request and gives its answer: 32 bytes, and what belongs to them.
func (c conn) ask(request []byte) ([]byte, error) {
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	answer := make([]byte, 32)
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err
	}
	switch answer[0] {
	case 0: // an error; it is of 32 bytes
		return nil, nil
	case 1:
		n := 4 * int64(order.Uint32(answer[4:]))
		if n > 1<<20 {
			return nil, fmt.Errorf("an answer of %d bytes", n)
		}
		answer = append(answer, make([]byte, n)...)
		_, err := io.ReadFull(c, answer[32:])
		return answer, err
	}
	return nil, fmt.Errorf("an answer of kind %d", answer[0])
}

// atom is the number of a word; 0 is one that nobody has said.
func (c conn) atom(name string) (uint32, error) {
	b := []byte{16, 1} // InternAtom, if it exists
	b = order.AppendUint16(b, uint16(2+pad(len(name))/4))
	b = order.AppendUint16(b, uint16(len(name)))
	b = append(b, 0, 0)
	b = append(b, name...)
	b = append(b, make([]byte, pad(len(name))-len(name))...)
	answer, err := c.ask(b)
	if err != nil || answer == nil {
		return 0, err
	}
	return order.Uint32(answer[8:]), nil
}

// windows is a property that is a list of windows; a window that is gone has none.
func (c conn) windows(of, property uint32) (list []uint32, err error) {
	const window, some = 33, 1024 // the type WINDOW; how many at most
	b := []byte{20, 0, 6, 0}      // GetProperty
	for _, n := range []uint32{of, property, window, 0, some} {
		b = order.AppendUint32(b, n)
	}
	answer, err := c.ask(b)
	if err != nil || answer == nil || answer[1] != 32 {
		return nil, err
	}
	n := int(order.Uint32(answer[16:]))
	if len(answer) < 32+4*n {
		return nil, errors.New("an answer that is too short")
	}
	for i := range n {
		list = append(list, order.Uint32(answer[32+4*i:]))
	}
	return list, nil
}

// lit looks at some lines of pixels, from the top of the screen to its bottom.
func (c conn) lit(r root) (percent int, err error) {
	const lines = 4
	pixels, bright := 0, 0
	for n := range uint16(lines) {
		b := []byte{73, 2, 5, 0} // GetImage, as pixels
		b = order.AppendUint32(b, r.id)
		for _, number := range []uint16{r.width / (lines + 1) * (n + 1), 0, 1, r.height} { // x, y, width, height
			b = order.AppendUint16(b, number)
		}
		b = order.AppendUint32(b, 0xffffff) // red, green, blue
		answer, err := c.ask(b)
		if err != nil {
			return 0, err
		}
		if answer == nil || len(answer) < 32+4*int(r.height) {
			continue // it was made smaller this moment, or has not four bytes for a pixel
		}
		for i := range int(r.height) {
			pixels++
			if order.Uint32(answer[32+4*i:])&0xffffff != 0 {
				bright++
			}
		}
	}
	if pixels == 0 {
		return 0, nil
	}
	return 100 * bright / pixels, nil
}
