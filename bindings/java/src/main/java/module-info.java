/** Exact attention over a sequence that is split among many ranks: libringattn for Java. */
module dev.ringattn {
  exports dev.ringattn;
}
