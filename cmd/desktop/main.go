// Command desktop is the entry point of the desktop image: one user's screen, and
// the only way in to it.
//
// It runs as the user, with no rights but the user's, in a container of which the
// portal is the only visitor. What must hold:
//
//   - Nobody looks in who does not hold the secret of this very session: the VNC
//     server listens on a UNIX socket that only the user may open, and what crosses
//     the network is TLS with a token in each request.
//   - Ready means painted: the server of the screen answers, and a window manager
//     has something on it.
//   - It runs the user's programs only while it has a lease, for another desktop of
//     the same home may follow when it was not heard of; see lease.go.
//   - What exits is started again, for a black screen helps nobody. That the session
//     ended is told to no one but the log: logging out is the portal's.
//   - Idle is a person's own doing. A clock that repaints itself is nobody at work,
//     see package rfb.
//
// The story, from top to bottom: main.go reads the command line; desktop.go is the
// life of a desktop, session.go what is on its screen, and family.go all of its
// processes; lease.go is when they may run; server.go is what the portal speaks to, and
// pipe.go carries the screen there. Package x11 looks whether it is painted.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// stamp is the version; the linker sets it.
var stamp string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(os.Stdout, os.Stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "desktop:", err)
		os.Exit(1)
	}
}

func newRoot(out, errOut io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "desktop",
		Short: "One user's screen, over HTTPS",
		Long: `Desktop runs one user's graphical session, and what the portal shows of it.

It is the entry point of an image and of no use outside of one.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(out)
	root.SetErr(errOut)
	root.AddCommand(runCommand(errOut))
	return root
}

func runCommand(errOut io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [-- SESSION...]",
		Short: "Run the desktop of the user whose process this is",
		Long: `Run starts a screen and the session on it, and keeps both. The session is XFCE,
or the command after --.

It reads HOME, USER and SCREEN (such as 1920x1080) from its environment, which
the session has too.`,
		Example: "  SCREEN=1280x800 desktop run\n  desktop run -- openbox-session",
	}
	o := Options{Environ: os.Environ(), User: os.Getenv("USER"), Home: os.Getenv("HOME")}
	flags := cmd.Flags()
	flags.StringVar(&o.Listen, "listen", ":8443", "address of HTTPS")
	flags.StringVar(&o.Secrets, "session", "/run/kingmaker/session", "folder with token, tls.crt and tls.key")
	flags.StringVar(&o.Runtime, "runtime", "/run/desktop", "folder for sockets; an empty one, made anew with the container")
	flags.StringVar(&o.Screen, "screen", os.Getenv("SCREEN"), "size that the screen begins with (default $SCREEN, else 1920x1080)")
	cmd.RunE = func(cmd *cobra.Command, session []string) error {
		o.Session = session
		o.Log = slog.New(slog.NewJSONHandler(errOut, nil))
		d, err := New(o)
		if err != nil {
			return err
		}
		d.Log.Info("desktop", "version", stamp)
		return d.Run(cmd.Context())
	}
	return cmd
}
