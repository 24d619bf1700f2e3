/* The life of one job under dw/v1: two slices, two cars, one row of the dispatcher's database, and a hostile network.
 *
 * Checked with Spin (`make model`). Time does not exist here: a lease may run out at any moment, early or late, so what
 * is proven does not rest on any clock. Replicas of the dispatcher keep no state, so the row stands for all of them (here
 * one replica hears one car), and a crash between the commit and the answer is an answer that was lost.
 *
 *   row    FREE -> LEASED(epoch, holder) -> FREE | DONE; `paid` says which slices were settled
 *   car    IDLE -> RUN(epoch, wanted) -> OUT (hand-in in the outbox) -> IDLE on a verdict
 *   net    loses, duplicates, reorders, and strips the statement off a hand-in: LOSS times in all; full channels drop
 *
 * Properties
 *   assert   a slice is paid once; only the holder of the row's epoch is paid; at most one hand-in an epoch settles
 *   assert   a car that lets go of finished slices loses none: each is paid, or a later epoch has taken its place
 *   regrant  a lease that was given back is free again: whoever asks next gets it                          (LTL)
 *   done     every job ends, once the faults have                                (LTL, under weak fairness)
 *
 * Planted bugs, each of which must be found (-D): NO_FENCE, NO_DEDUP, NO_OUTBOX, NO_BINDING, PUBACK_DELETES, YIELD_KEEPS,
 * SEND_ONCE. Bounds: EPOCHS, EXPIRIES, YIELDS, CRASHES, LOSS.
 */
#ifndef EPOCHS
#define EPOCHS 3
#endif
#ifndef EXPIRIES
#define EXPIRIES 1
#endif
#ifndef YIELDS
#define YIELDS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef LOSS
#define LOSS 1
#endif
#define CARS 2
#define ALL 3 /* both slices */
#define NOBODY 255

mtype = { FREE, LEASED, DONE, IDLE, RUN, OUT, REQUEST, HANDIN, GRANT, SETTLED, STALE };

/* up: kind, epoch (of a request: that which the car holds), slices (of a stripped hand-in: none) */
chan up[CARS] = [2] of { mtype, byte, byte };
/* down: kind, epoch, slices (granted, or those of the statement that was judged) */
chan down[CARS] = [2] of { mtype, byte, byte };

mtype row = FREE;
byte epoch = 0, holder = NOBODY, paid = 0;
bool judged[EPOCHS + 1]; /* a hand-in of this epoch was settled */
byte judged_slices[EPOCHS + 1], judged_car[EPOCHS + 1];
byte expired = 0, yielded = 0, crashed = 0, troubled = 0;
bool given_back = false; /* the holder of the row's epoch gave it back */

mtype car[CARS] = IDLE;
byte held[CARS], last[CARS], wanted[CARS], finished[CARS];
bool sent[CARS];

/* The fence: the holder of the row's epoch, and nobody else. */
#ifdef NO_FENCE
#define FENCE(c, e) (row != DONE)
#else
#define FENCE(c, e) (e == epoch && c == holder)
#endif
/* One hand-in an epoch. */
#ifdef NO_DEDUP
#define FRESH(e) true
#else
#define FRESH(e) (!judged[e])
#endif
/* A verdict names the very statement that it is on. */
#ifdef NO_BINDING
#define SAME_STATEMENT(c, slices) true
#else
#define SAME_STATEMENT(c, slices) (slices == finished[c])
#endif
#ifdef SEND_ONCE
#define MAY_SEND(c) (!sent[c])
#else
#define MAY_SEND(c) true
#endif

inline tell(to, what, which, named) {
  if
  :: nfull(down[to]) -> down[to]!what, which, named
  :: full(down[to]) -> skip
  fi
}

/* Nothing a car lets go of is lost. */
inline let_go(c) {
  assert(((finished[c] & paid) == finished[c]) || epoch > held[c]);
  car[c] = IDLE; held[c] = 0; finished[c] = 0; wanted[c] = 0
}

proctype Replica(byte c) {
  mtype kind;
  byte e, slices;
end:
  do
  :: atomic { up[c]?kind, e, slices ->
      if
      :: kind == REQUEST ->
          if
          :: row == LEASED && holder == c && e != epoch -> /* it was lost on the way: again, or freed */
              if
              :: tell(c, GRANT, epoch, ALL & ~paid)
              :: expired < EXPIRIES -> expired++; row = FREE /* too little of its time is left */
              fi
          :: row == FREE && epoch < EPOCHS && e == 0 ->
              epoch++; row = LEASED; holder = c; given_back = false;
              tell(c, GRANT, epoch, ALL & ~paid)
          :: else -> skip /* nothing for it: it asks again */
          fi
      :: kind == HANDIN ->
          if
          :: !FRESH(e) && judged_car[e] == c -> tell(c, SETTLED, e, judged_slices[e])
          :: FENCE(c, e) && FRESH(e) && slices != 0 ->
              assert((paid & slices) == 0);
              assert(!judged[e] && e == epoch && c == holder);
              paid = paid | slices;
              judged[e] = true; judged_slices[e] = slices; judged_car[e] = c;
              if
              :: paid == ALL -> row = DONE
              :: else ->
                  given_back = true;
#ifndef YIELD_KEEPS
                  row = FREE
#endif
              fi;
              tell(c, SETTLED, e, slices)
          :: e == epoch && c == holder && slices == 0 && !judged[e] && row != DONE -> /* given back with nothing done */
              given_back = true;
#ifndef YIELD_KEEPS
              row = FREE;
#endif
              tell(c, SETTLED, e, 0)
          :: else -> tell(c, STALE, e, slices)
          fi
      fi }
  od
}

proctype Clock() {
end:
  do
  :: atomic { row == LEASED && expired < EXPIRIES -> expired++; row = FREE }
  od
}

proctype Car(byte c) {
  mtype kind;
  byte e, slices;
end:
  do
  :: atomic { down[c]?kind, e, slices ->
      if
      :: kind == GRANT && car[c] == IDLE && e > last[c] ->
          car[c] = RUN; held[c] = e; last[c] = e; wanted[c] = slices; finished[c] = 0; sent[c] = false
      :: kind == SETTLED && car[c] == OUT && e == held[c] && SAME_STATEMENT(c, slices) -> let_go(c)
      :: kind == STALE && car[c] == OUT && e == held[c] && slices == finished[c] -> let_go(c)
      :: else -> skip
      fi }
  :: atomic { empty(down[c]) && car[c] == IDLE && row != DONE && nfull(up[c]) -> up[c]!REQUEST, 0, 0 }
  :: atomic { car[c] == RUN && finished[c] != wanted[c] -> /* a slice is durable as soon as it is finished */
      if
      :: (wanted[c] & 1) && !(finished[c] & 1) -> finished[c] = finished[c] | 1
      :: else -> finished[c] = finished[c] | 2
      fi }
  :: atomic { car[c] == RUN && finished[c] == wanted[c] -> car[c] = OUT }
  :: atomic { car[c] == RUN && yielded < YIELDS -> yielded++; car[c] = OUT } /* the driver comes, or its time is up */
  :: atomic { empty(down[c]) && car[c] == OUT && nfull(up[c]) && MAY_SEND(c) -> up[c]!HANDIN, held[c], finished[c];
      sent[c] = true;
#ifdef PUBACK_DELETES
      let_go(c);
#endif
      }
  :: atomic { crashed < CRASHES && car[c] != IDLE -> crashed++;
#ifdef NO_OUTBOX
      let_go(c)
#else
      car[c] = OUT /* what was finished is handed in after the restart */
#endif
      }
  od
}

proctype Net(byte c) {
  mtype kind;
  byte e, slices;
end:
  do
  :: atomic { troubled < LOSS && nempty(up[c]) -> troubled++;
      if
      :: up[c]?kind, e, slices                                            /* lost */
      :: nfull(up[c]) -> up[c]?<kind, e, slices>; up[c]!kind, e, slices   /* twice, the second time out of order */
      :: up[c]?[HANDIN, e, slices] -> up[c]?kind, e, slices; up[c]!HANDIN, e, 0 /* its statement stripped off */
      fi }
  :: atomic { troubled < LOSS && nempty(down[c]) -> troubled++;
      if
      :: down[c]?kind, e, slices
      :: nfull(down[c]) -> down[c]?<kind, e, slices>; down[c]!kind, e, slices
      fi }
  od
}

init {
  atomic { run Replica(0); run Replica(1); run Clock(); run Car(0); run Car(1); run Net(0); run Net(1) }
}

#ifdef CHECK_REGRANT
ltl regrant { [] (given_back -> (row == FREE || row == DONE)) }
#endif
#ifdef CHECK_DONE
ltl done { <> (row == DONE) }
#endif
