"""What the fields of systems mean (`config.model`), for people.

Systems share most of their fields, and a field of one name has one meaning. A
system from outside may have a table MEANINGS of its own in its module.
"""

MEANINGS = {
  'name': 'the system; it is chosen as --config=FILE:SYSTEM, not by this field',
  # Of networks.
  'dim': "the width of a user's embedding, d of SPEC 3",
  'time_dim': 'the width of the time encoding, SPEC 3.1',
  'num_neighbors': "a node's most recent events that are read; of UPCF and "
  'STAN, similar users or sessions',
  'num_layers': 'layers over neighborhoods, or of propagation',
  'num_heads': 'heads of attention',
  'shared_layers': 'whether users and items share the weights of attention',
  'dropout': 'the share of numbers that training sets to zero',
  'memory': 'whether nodes have a memory, SPEC 3.10',
  'memory_dtype': 'what memories are kept as between updates, SPEC 4.6',
  'neighborhood': 'whether neighborhoods are aggregated, SPEC 3.3',
  'network': "the paper's, or that of TGN with facets fused into its users, "
  'SPEC 3.8',
  'projection': 'how a memory is carried to the time of a query, SPEC 3.4',
  'update_ties': 'events of a node at one time update its memory by their '
  'mean, or each in turn',
  'item_text': "whether an item's text is read",
  'item_id_embedding': 'whether an item has a learned vector of its own',
  'event_features': 'whether the four numbers of SPEC 2.2 are read',
  'facets': 'which facets of a user are read, () for none, SPEC 3.6',
  'distill.order': 'how the most telling coordinates of a facet are found, '
  'SPEC 3.7',
  'distill.top_r': 'how many of them are kept',
  'distill.gate': 'what a coordinate is multiplied by, SPEC 3.7',
  'fusion.mode': 'how graph embedding and facets are combined, SPEC 3.8',
  'fusion.num_layers': 'layers of the perceptron that merges them',
  'fusion.alpha': 'the share of the graph embedding where they are blended',
  'copy_term': 'whether items that the user took before get a score of their '
  'own, SPEC 3.11 (a variant, +walk, sets it)',
  'copy_neighbors': 'items of the user that the term of copies reads',
  'walk_term': 'whether walks over the graph add to the score, SPEC 3.11 '
  '(+walk sets it)',
  'walk_fanout': "neighbors that each of a walk's three steps visits",
  'text_term': 'whether texts of items taken before add to the score (+text '
  'sets it)',
  'text_neighbors': 'items of the user that the term of texts reads',
  'text_whitening': 'whether it reads texts of unit covariance, SPEC 3.11',
  'count_terms': 'whether counts of what others took next add to the score, '
  'SPEC 3.12 (+counts sets it)',
  'count_depth': "the user's last events whose successors are read",
  'count_successors': 'successors of an item that are kept, the most frequent; '
  '0: all in a catalogue of up to 4,096 items, 64 in a larger one',
  'gate': 'whether the weights of the terms follow from the user',
  'normalize': 'whether vectors get length 1 after each layer',
  'initial_deviation': 'the standard deviation of the first random vectors',
  # Of sequences.
  'max_length': 'items of a sequence that are read',
  'num_blocks': 'blocks of attention, one after the other',
  'hidden_factor': "how much wider a block's hidden layer is",
  'temperature': 'what scores are divided by before the loss',
  # Of what counts.
  'depth': "a user's most recent items that are read",
  'half_life_days': 'days after which an event counts half',
  'popularity_weight': 'how much of popularity is added, to order items of '
  'equal scores',
  'max_table_gib': 'GiB that a table of pairs of items may take; what needs '
  'more is left out of a comparison',
  'penalty': 'of squared weights, the lambda of ridge regression',
  'shrinkage': 'transitions that are added to the count of each item, against '
  'chance',
  'after': "events after a similar session's match that are read",
  'before': 'events before it that are read',
  'num_takers': 'most recent takers of an item that are looked at',
  'item_decay': 'how quickly the weight of items falls with their distance '
  'from the match',
  'position_decay': 'how quickly the weight of the own items falls with their '
  'distance from the end',
  'neighbor_decay_days': 'days after which a neighbor counts 1/e',
  'asymmetry': 'how much of the similarity is by the size of the user, 0 to 1',
  'locality': 'the power to which similarities are raised',
  'recency': 'most recent events of a user that count',
}
