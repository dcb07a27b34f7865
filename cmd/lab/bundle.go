package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/bundle"
)

func runBundle(ctx context.Context, flags *flag.FlagSet, args []string) error {
	var options bundle.Options
	output := flags.String("output", "", "write the archive, and its sum beside it, into the folder `DIR`")
	flags.BoolVar(&options.Refresh, "refresh", false, "look for newer Debian packages")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return errUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(flags.Output(), "lab bundle takes no argument: %q\n", flags.Args())
		flags.Usage()
		return errUsage
	}

	dir, err := bundle.Make(ctx, options, os.Stderr)
	if err != nil {
		return err
	}
	if *output == "" {
		fmt.Println(dir)
		return nil
	}
	if err := os.MkdirAll(*output, 0o755); err != nil {
		return err
	}
	file := filepath.Join(*output, filepath.Base(dir)+".tar.gz")
	begin := time.Now()
	if err := bundle.Archive(ctx, dir, file); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "archived it in %s\n", time.Since(begin).Round(100*time.Millisecond))
	fmt.Println(file)
	return nil
}
