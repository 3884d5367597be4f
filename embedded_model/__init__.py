"""Generated data for the embedded model: drawn pictures, rendered text, synthetic speech, questions and answers."""
