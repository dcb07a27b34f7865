// The CNI plugin called flannel, which makes from what flanneld wrote about this
// machine the configuration of the plugin bridge, and runs that.
//
// Its development moved in 2021 to github.com/flannel-io/cni-plugin, which the Go
// module proxy does not have. This is the last version at its old place. It speaks
// CNI up to 0.4.0, and flannel's own configuration asks for 0.3.1; the text that
// it reads and the one that it makes are unchanged since. The requirements but cni
// are those of a Windows package, of which nothing gets into the program.
module github.com/kingmaker-io/kingmaker/cmd/lab/build/flannelcni

go 1.26.0

tool github.com/containernetworking/plugins/plugins/meta/flannel

require (
	github.com/Microsoft/go-winio v0.4.11 // indirect
	github.com/Microsoft/hcsshim v0.8.6 // indirect
	github.com/buger/jsonparser v0.0.0-20180808090653-f4dd9f5a6b44 // indirect
	github.com/containernetworking/cni v0.8.1 // indirect
	github.com/containernetworking/plugins v0.9.1 // indirect
	github.com/sirupsen/logrus v1.0.6 // indirect
	golang.org/x/crypto v0.0.0-20200622213623-75b288015ac9 // indirect
	golang.org/x/sys v0.0.0-20201117170446-d9b008d0a637 // indirect
)
