// Copies are enqueued on the sender's stream for transfers, by the receiver's thread. Events order them both ways, so that no thread
// waits for a GPU:
//
//   sender's stream      writes the bytes, offers them                  waits for the copies, may overwrite the bytes
//   sender's transfers     publish: waits for that offer,                 for each receiver: waits for its offer, copies
//   receiver's stream    is done with the room, offers it               waits for the copies, reads the bytes
//
// Everything that a stream waits for was enqueued before, so streams cannot wait in a circle, in whatever order threads come. The
// copies of a sender are in one stream: an event that has been recorded anew, after those for another receiver, stands for the former
// ones too.
#include "transport/local_cuda.h"

namespace ringattn {
namespace {

using cuda::Event;

class CudaCopier final : public Copier {
 public:
  explicit CudaCopier(cuda::Queue& queue) : queue_(queue) {
    const cuda::OnDevice on(queue.device());
    offered_ = Event(Event::For::ordering);
    copied_ = Event(Event::For::ordering);
  }

  int device() const override { return queue_.device(); }

  // Without it copies between two devices take a way over the host.
  void meet(int peer) override {
    int can_access = 0;
    if (peer == device()) return;
    const cuda::BesideCapture beside;
    cuda::check(cudaDeviceCanAccessPeer(&can_access, device(), peer), "cudaDeviceCanAccessPeer");
    if (can_access == 0) return;
    const cuda::OnDevice on(device());
    const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled)
      cudaGetLastError();
    else
      cuda::check(error, "cudaDeviceEnablePeerAccess");
  }

  bool enqueues() const override { return true; }
  void offer() override { offered_.record(queue_.stream()); }
  void publish() override { cuda::wait(queue_.transfers(), offered_); }

  void copy(Copier& from_rank, std::span<const Piece> pieces) override {
    auto& sender = static_cast<CudaCopier&>(from_rank);
    const cudaStream_t transfers = sender.queue_.transfers();
    cuda::wait(transfers, offered_);
    try {
      for (const Piece& piece : pieces)
        if (piece.size > 0)
          cuda::check(cudaMemcpyAsync(piece.to, piece.from, piece.size, cudaMemcpyDeviceToDevice, transfers),
                      "cudaMemcpyAsync");
      sender.copied_.record(transfers);
      cuda::wait(queue_.stream(), sender.copied_);
    } catch (...) {
      const cuda::BesideCapture beside;
      cudaStreamSynchronize(transfers);
      cudaGetLastError();
      throw;
    }
  }

  void end_sends() override { cuda::wait(queue_.stream(), copied_); }

 private:
  cuda::Queue& queue_;
  Event offered_;
  Event copied_;  // recorded by receivers
};

}  // namespace

std::unique_ptr<Copier> make_cuda_copier(cuda::Queue& queue) { return std::make_unique<CudaCopier>(queue); }

}  // namespace ringattn
