// Threads that go through many short phases of work together, each of some hundred microseconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace xpkern {

// One thread leads: it announces a phase, takes part in it, and goes on when all its pieces are done. Others help: they
// take pieces of whatever phase there is, and wait for the next without sleeping, as waking takes as long as a phase.
// The leader never waits for a helper to come, only for pieces that one has taken, so any number of helpers will do.
// work(phase, piece, worker) does a piece; pieces(phase) says how many there are. Neither may throw.
template <class Work, class Pieces>
class Team {
  public:
    Team(const Work& work, const Pieces& pieces) : work_(work), pieces_(pieces) {}

    // Called by the leader alone; phases are numbered from 0.
    void run_phase() {
        done_.store(0, std::memory_order_relaxed);
        next_.store(static_cast<uint64_t>(phase_) << PIECE_BITS, std::memory_order_release);
        while (take_piece(0)) {
        }
        Patience patience;
        while (done_.load(std::memory_order_acquire) < pieces_(phase_)) patience.wait();
        ++phase_;
    }

    // Lets the helpers go.
    void dismiss() { next_.store(DISMISSED, std::memory_order_release); }

    // Takes pieces until dismissed.
    void help(int worker) {
        Patience patience;
        while (next_.load(std::memory_order_acquire) != DISMISSED) {
            if (take_piece(worker))
                patience = Patience();
            else
                patience.wait();
        }
    }

  private:
    static constexpr int PIECE_BITS = 32;
    static constexpr uint64_t DISMISSED = ~uint64_t(0);

    // Waits for another processor; after a while, in case there is none, lets other threads have this one.
    class Patience {
      public:
        void wait() {
            if (++waited_ > 4000) return std::this_thread::yield();
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        }

      private:
        int waited_ = 0;
    };

    bool take_piece(int worker) {
        uint64_t next = next_.load(std::memory_order_acquire);
        do {
            if (next == DISMISSED) return false;
            if (piece_of(next) >= pieces_(phase_of(next))) return false;
        } while (!next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel, std::memory_order_acquire));
        work_(phase_of(next), piece_of(next), worker);
        done_.fetch_add(1, std::memory_order_release);
        return true;
    }

    static int64_t phase_of(uint64_t next) { return static_cast<int64_t>(next >> PIECE_BITS); }
    static int64_t piece_of(uint64_t next) { return static_cast<int64_t>(next & ((uint64_t(1) << PIECE_BITS) - 1)); }

    const Work& work_;
    const Pieces& pieces_;
    int64_t phase_ = 0;                             // the leader's
    alignas(64) std::atomic<uint64_t> next_{NONE};  // phase and piece that nobody has taken yet
    alignas(64) std::atomic<int64_t> done_{0};

    static constexpr uint64_t NONE = DISMISSED - 1;  // before the first phase
};

}  // namespace xpkern
