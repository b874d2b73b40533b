package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

const (
	// blockSize is what is compared and sent as one: a multiple of every page size of
	// InnoDB's, and with a hash that is a four-thousandth of it.
	blockSize = 128 << 10
	// pieceSize is what one connection works on: large files are sent over all of them.
	pieceSize = 32 << 20
	// batchPieces is how many small files share a round trip.
	batchPieces = 512
)

type hash = [32]byte

// piece is a part of a file, or all of it.
type piece struct {
	Name   string `json:"name"`
	Offset int64  `json:"offset,omitempty"`
	Length int64  `json:"length"`
	Sparse bool   `json:"sparse,omitempty"` // zeros become holes

	path string // at the sender
}

func (p piece) blocks() int { return int((p.Length + blockSize - 1) / blockSize) }

// block is where the i-th block of a piece lies in the file.
func (p piece) block(i int) (offset int64, length int) {
	at := int64(i) * blockSize
	return p.Offset + at, int(min(blockSize, p.Length-at))
}

var (
	zeros    [blockSize]byte
	zeroHash = blake3.Sum256(zeros[:])
)

func hashOfZeros(length int) hash {
	if length == blockSize {
		return zeroHash
	}
	return blake3.Sum256(zeros[:length])
}

// rootOf is the hash of a piece: of its blocks' hashes.
func rootOf(hashes []hash) hash {
	h := blake3.New()
	for _, one := range hashes {
		h.Write(one[:])
	}
	return hash(h.Sum(nil))
}

// hashesIn reads what a piece of a file holds. Holes are not read, so that a file that was
// just made costs nothing; allHole tells that there was nothing else.
func hashesIn(f *os.File, p piece) (found []hash, allHole bool, err error) {
	allHole = true
	buffer := make([]byte, blockSize)
	data := int64(-1) // where the next data is, as far as known
	for i := range p.blocks() {
		offset, length := p.block(i)
		if data < offset {
			data, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
			switch {
			case errors.Is(err, unix.ENXIO):
				data = p.Offset + p.Length // none up to the end
			case err != nil:
				data = offset // the filesystem cannot tell
			}
		}
		if data >= offset+int64(length) {
			found = append(found, hashOfZeros(length))
			continue
		}
		allHole = false
		if _, err := f.ReadAt(buffer[:length], offset); err != nil {
			return nil, false, err
		}
		found = append(found, blake3.Sum256(buffer[:length]))
	}
	return found, allHole, nil
}

// A block on its way: which piece of the batch, which block of it, how it is packed, the
// hash, the content.
const blockHeader = 4 + 4 + 1 + len(hash{})

const (
	packedZeros byte = iota // no content
	packedPlain
	packedZstd
)

type packer struct {
	zstd   *zstd.Encoder
	buffer []byte
}

func newPacker() (*packer, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	return &packer{zstd: encoder}, err
}

// pack returns the header and the content of a frame.
func (p *packer) pack(piece, block int, sum hash, data []byte) (head, content []byte) {
	head = make([]byte, blockHeader)
	binary.LittleEndian.PutUint32(head, uint32(piece))
	binary.LittleEndian.PutUint32(head[4:], uint32(block))
	copy(head[9:], sum[:])
	if sum == hashOfZeros(len(data)) {
		head[8] = packedZeros
		return head, nil
	}
	p.buffer = p.zstd.EncodeAll(data, p.buffer[:0])
	if len(p.buffer) < len(data)-len(data)/16 {
		head[8] = packedZstd
		return head, p.buffer
	}
	head[8] = packedPlain
	return head, data
}

type unpacker struct {
	zstd   *zstd.Decoder
	buffer []byte
}

func newUnpacker() (*unpacker, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20))
	return &unpacker{zstd: decoder}, err
}

// unpack returns the content of a block of the given length, checked against its hash; nil
// for zeros.
func (u *unpacker) unpack(how byte, content []byte, length int, want hash) ([]byte, error) {
	switch how {
	case packedZeros:
		if want != hashOfZeros(length) {
			return nil, errDamaged
		}
		return nil, nil
	case packedZstd:
		var err error
		if u.buffer, err = u.zstd.DecodeAll(content, u.buffer[:0]); err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		content = u.buffer
	case packedPlain:
	default:
		return nil, errDamaged
	}
	if len(content) != length || blake3.Sum256(content) != want {
		return nil, errDamaged
	}
	return content, nil
}

// shortRead explains a file that is shorter than it was when it was listed.
func shortRead(path string, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s changed while it was read", path)
	}
	return err
}
