"""The pool: who holds which accelerators, and who gets them next."""
