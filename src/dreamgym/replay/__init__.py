"""The replay buffer: real transitions first, dreamed ones added, retrieved by cosine of an encoding of (state, action)."""
